"""Speech for ticketkit: recognisers, corpora and a trainer, registered through the same hooks as any third party's."""
