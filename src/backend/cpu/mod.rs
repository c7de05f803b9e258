//! The processor as a backend.
