"""What a conversion will do, before it does it: types, sizes, classes, memory, time."""
