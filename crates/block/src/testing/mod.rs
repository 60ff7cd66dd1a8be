//! The disk that driver authors test against.
