"""Operations: the processes of `make serve`, logs and metrics, health, and the inventory of data."""
