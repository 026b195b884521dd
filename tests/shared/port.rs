//! Ports that a server keeps over its restarts.
//!
//! A port that the system chose (`:0`) may go to anybody else while its server is down: to another server, or to the near
//! end of a connection. These lie below the ports that systems hand out (32768 on Linux, 49152 elsewhere), and one test
//! process gives none of them twice.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use rand::Rng as _;

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// An address on loopback that is free for TCP and for UDP.
pub(crate) fn kept_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes side by side start apart.
    let _ = NEXT.compare_exchange(0, rand::rng().random_range(1..=COUNT), Relaxed, Relaxed);
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Relaxed) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port from {FIRST} on, of {COUNT}, is free");
}
