"""What a recogniser learns: CTC, or a transducer."""
