//! The network between the two: a UDP proxy that loses, doubles, delays and swallows datagrams.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, rngs::StdRng};
use tokio::net::UdpSocket;

use crate::plan::{NetworkFault, Seed};

/// Largest datagram.
const DATAGRAM_BYTES: usize = 65_536;

/// A running proxy in front of one address.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fault: Mutex<Option<NetworkFault>>,
    random: Mutex<StdRng>,
    forwarded: AtomicU64,
    hit: AtomicU64,
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr, seed: Seed) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let shared = Arc::new(Shared {
            fault: Mutex::default(),
            random: Mutex::new(seed.actor("proxy", 0)),
            forwarded: AtomicU64::new(0),
            hit: AtomicU64::new(0),
        });
        tokio::spawn(serve(socket, upstream, shared.clone()));
        Self { address, shared }
    }

    pub(crate) fn set(&self, fault: Option<NetworkFault>) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Datagrams forwarded, and those that a fault hit.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.shared.forwarded.load(Ordering::Relaxed), self.shared.hit.load(Ordering::Relaxed))
    }
}

/// Every client address gets a socket of its own towards the upstream, so that answers find their way back.
async fn serve(socket: Arc<UdpSocket>, upstream: SocketAddr, shared: Arc<Shared>) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        // An error here is an ICMP answer to an earlier datagram: the peer is away.
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
        let outward = match clients.get(&client) {
            Some(outward) => outward.clone(),
            None => {
                let outward = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                clients.insert(client, outward.clone());
                tokio::spawn(answer(outward.clone(), socket.clone(), client, shared.clone()));
                outward
            }
        };
        shared.deliver(outward, upstream, buffer[..len].to_vec()).await;
    }
}

async fn answer(outward: Arc<UdpSocket>, socket: Arc<UdpSocket>, client: SocketAddr, shared: Arc<Shared>) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let Ok((len, _)) = outward.recv_from(&mut buffer).await else { continue };
        shared.deliver(socket.clone(), client, buffer[..len].to_vec()).await;
    }
}

impl Shared {
    async fn deliver(&self, from: Arc<UdpSocket>, to: SocketAddr, datagram: Vec<u8>) {
        let fault = *self.fault.lock().unwrap();
        let chance = self.random.lock().unwrap().random_range(0..100);
        self.forwarded.fetch_add(1, Ordering::Relaxed);
        let hit = |is_hit: bool| {
            self.hit.fetch_add(u64::from(is_hit), Ordering::Relaxed);
            is_hit
        };
        match fault {
            None => {}
            Some(NetworkFault::Cut) => {
                hit(true);
                return;
            }
            Some(NetworkFault::Drop(percent)) if hit(chance < percent) => return,
            Some(NetworkFault::Duplicate(percent)) if hit(chance < percent) => {
                let _ = from.send_to(&datagram, to).await;
            }
            Some(NetworkFault::Drop(_) | NetworkFault::Duplicate(_)) => {}
            Some(NetworkFault::Delay(most)) => {
                hit(true);
                let wait = most.mul_f64(self.random.lock().unwrap().random());
                tokio::spawn(async move {
                    tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
                    let _ = from.send_to(&datagram, to).await;
                });
                return;
            }
        }
        let _ = from.send_to(&datagram, to).await;
    }
}
