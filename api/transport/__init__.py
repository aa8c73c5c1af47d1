"""What every request passes, whatever it is about: connections, hosts, bodies, errors, pages of lists, repeats and limits."""
