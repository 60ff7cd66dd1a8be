//! The one place where requests are padded and split.
