"""What ringmain uses of pyarrow."""

from typing import Any

class Table:
    column_names: list[str]
    num_rows: int
    schema: Any
    def __len__(self) -> int: ...
    def __getattr__(self, name: str) -> Any: ...
    @staticmethod
    def from_batches(batches: list[Any], schema: Any) -> Table: ...

def __getattr__(name: str) -> Any: ...
