//! Ports that nobody has.

use std::net::{IpAddr, TcpListener};

use anyhow::{Context as _, Result};

/// A port that was free a moment ago. Another process may take it in between: starts that lose it try again.
///
/// # Errors
/// When there is none.
pub fn free_port(address: IpAddr) -> Result<u16> {
    let listener = TcpListener::bind((address, 0)).context("no port is free")?;
    Ok(listener.local_addr().context("the listener has no address")?.port())
}
