"""What people agree to, take along, complain about and have deleted, and what is deleted by itself."""
