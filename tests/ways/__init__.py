"""Every record in every way that people call it: what is called (subjects), how, and what may be refused (documented)."""
