"""One bus on several hosts: who leads is written in the stream that carries the records. Needs the extra `cluster`."""
