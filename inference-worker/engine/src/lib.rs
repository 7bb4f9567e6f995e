//! Runs a model: its shape and memory plan from GGUF headers, a paged KV cache, and the forward pass
//! of several sequences at once, by the numerics contract that makes takeovers exact.

pub mod decode;
