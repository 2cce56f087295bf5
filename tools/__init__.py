"""What a person runs: the `ringmain` command and the parts it is made of."""
