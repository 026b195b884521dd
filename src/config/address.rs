//! Listen addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where to listen: `"127.0.0.1:5442"`, `"[::1]:5442"`, `"localhost:5442"` (IPv4 loopback), or `":7443"` (all IPv4
/// interfaces). Port 0 picks a free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

impl ListenAddress {
    /// A port on the IPv4 loopback interface.
    pub fn loopback(port: u16) -> Self {
        Self(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    }

    /// A port on all IPv4 interfaces.
    pub fn any(port: u16) -> Self {
        Self(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for ListenAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ListenAddress;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an IP address and port, such as \"127.0.0.1:5442\", or \":5442\" for all interfaces")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ListenAddress, E> {
                let wrong = || E::invalid_value(de::Unexpected::Str(text), &self);
                if let Some(port) = text.strip_prefix(':') {
                    return port.parse().map(ListenAddress::any).map_err(|_| wrong());
                }
                if let Some(port) = text.strip_prefix("localhost:") {
                    return port.parse().map(ListenAddress::loopback).map_err(|_| wrong());
                }
                text.parse().map(ListenAddress).map_err(|_| wrong())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
