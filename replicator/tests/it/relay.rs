//! A long way between two sites: a UDP relay that gives every datagram a fixed delay, in order, and can stall.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{net::UdpSocket, sync::mpsc, time::Instant};

const DATAGRAM_BYTES: usize = 65_536;

/// A relay in front of one address.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    delay: Duration,
    stalled: AtomicBool,
    forwarded: AtomicU64,
    swallowed: AtomicU64,
}

impl Relay {
    /// `delay`: of one direction; the round trip takes twice as long.
    pub async fn start(upstream: SocketAddr, delay: Duration) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let state = Arc::new(State {
            delay,
            stalled: AtomicBool::new(false),
            forwarded: AtomicU64::new(0),
            swallowed: AtomicU64::new(0),
        });
        tokio::spawn(serve(socket, upstream, state.clone()));
        Self { address, state }
    }

    /// While it stalls, nothing arrives on either side.
    pub fn stall(&self, stalled: bool) {
        self.state.stalled.store(stalled, Ordering::Relaxed);
    }

    /// Bytes that arrived, both directions together.
    pub fn forwarded(&self) -> u64 {
        self.state.forwarded.load(Ordering::Relaxed)
    }

    /// Datagrams that a stall took.
    pub fn swallowed(&self) -> u64 {
        self.state.swallowed.load(Ordering::Relaxed)
    }
}

/// Every client has a socket of its own towards the upstream, so that answers find their way back.
async fn serve(socket: Arc<UdpSocket>, upstream: SocketAddr, state: Arc<State>) {
    let mut ways: HashMap<SocketAddr, mpsc::UnboundedSender<(Instant, Vec<u8>)>> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        // An error is an ICMP answer to an earlier datagram: the peer is away.
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
        let way = match ways.get(&client) {
            Some(way) => way,
            None => {
                let outward = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                let there = way(outward.clone(), upstream, state.clone());
                let back = way(socket.clone(), client, state.clone());
                tokio::spawn(answers(outward, back, state.clone()));
                ways.entry(client).or_insert(there)
            }
        };
        state.take(way, &buffer[..len]);
    }
}

async fn answers(outward: Arc<UdpSocket>, back: mpsc::UnboundedSender<(Instant, Vec<u8>)>, state: Arc<State>) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let Ok((len, _)) = outward.recv_from(&mut buffer).await else { continue };
        state.take(&back, &buffer[..len]);
    }
}

/// What is under way in one direction.
fn way(from: Arc<UdpSocket>, to: SocketAddr, state: Arc<State>) -> mpsc::UnboundedSender<(Instant, Vec<u8>)> {
    let (sender, mut queue) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((due, datagram)) = queue.recv().await {
            tokio::time::sleep_until(due).await;
            if from.send_to(&datagram, to).await.is_ok() {
                state.forwarded.fetch_add(datagram.len() as u64, Ordering::Relaxed);
            }
        }
    });
    sender
}

impl State {
    fn take(&self, way: &mpsc::UnboundedSender<(Instant, Vec<u8>)>, datagram: &[u8]) {
        if self.stalled.load(Ordering::Relaxed) {
            self.swallowed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let _ = way.send((Instant::now() + self.delay, datagram.to_vec()));
    }
}
