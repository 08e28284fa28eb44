"""Tickets in other frameworks' training loops: each adapter attaches, counts steps, saves and logs, and no more.

What holds a mask is `ticketkit.enforced`, what rewinds and resumes is `ticketkit.Round`, as in any loop. Each module
needs its framework and says which extra brings it.
"""
