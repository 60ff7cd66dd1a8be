//! The client side of negotiation.
