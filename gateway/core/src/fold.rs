//! From committed tokens to what a client reads.
