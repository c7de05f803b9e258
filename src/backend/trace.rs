//! A null device that checks lengths and logs the names of operations.
