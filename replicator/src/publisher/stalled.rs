//! A replica that gives credit and takes nothing: it costs the primary its budget and nobody else anything.

use std::{net::SocketAddr, sync::Arc};

use quinn::{Connection, Endpoint, RecvStream, SendStream, TransportConfig};
use tailrace_wal::{NodeId, Position, Seq};

use crate::{
    PublisherConfig, ReplicaFlow,
    support::{Authority, Site, eventually},
    tls,
    wire::{FeedNumber, FollowerMessage, PROTOCOL, encode_control},
};

const CACHE_BYTES: u64 = 1 << 20;
const SEND_BYTES: u64 = 4 << 20;

/// Attached, opened at the beginning, with credit; its windows are small and nobody reads.
struct Stalled {
    connection: Connection,
    _control: (SendStream, RecvStream),
    _endpoint: Endpoint,
}

impl Stalled {
    async fn attach(site: &Site, primary: SocketAddr, position: Position) -> Self {
        let mut client = tls::client_config(&site.tls).unwrap();
        let mut transport = TransportConfig::default();
        transport.receive_window((128u32 << 10).into()).stream_receive_window((64u32 << 10).into());
        transport.keep_alive_interval(Some(std::time::Duration::from_millis(200)));
        client.transport_config(Arc::new(transport));
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint.connect_with(client, primary, "127.0.0.1").unwrap().await.unwrap();
        let (mut send, receive) = connection.open_bi().await.unwrap();
        let feed = FeedNumber(1);
        let hello = FollowerMessage::Hello {
            protocol: PROTOCOL,
            version: "0".into(),
            cluster: site.name.clone(),
            node: NodeId([9; 16]),
        };
        let open = FollowerMessage::Open { feed, position, restart_seq: position.seq, filter: None };
        for message in [hello, open, FollowerMessage::Pull { feed, chunks: 1_000 }] {
            send.write_all(&encode_control(&message).unwrap()).await.unwrap();
        }
        Self { connection, _control: (send, receive), _endpoint: endpoint }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_replica_holds_its_budget_and_nobody_up() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let publisher = primary
        .publish_as(PublisherConfig {
            flow: ReplicaFlow { compression: crate::CompressionPolicy::None, rate_limit: None },
            cache_bytes: CACHE_BYTES,
            send_bytes: SEND_BYTES,
            ..primary.publisher_config()
        })
        .await;
    primary.market("market").await;
    let (bad, good) = (Site::new(&authority, "bad").await, Site::new(&authority, "good").await);
    let start = Position::start(primary.position("market").unwrap().history);
    let follower = good.follow(publisher.local_addr()).await;
    good.catches_up(&primary, "market").await;
    let stalled = Stalled::attach(&bad, publisher.local_addr(), start).await;
    let in_flight = || {
        let feed = publisher.feeds().into_iter().find(|feed| feed.replica == "bad")?;
        Some(feed.link?.in_flight_bytes)
    };
    eventually("the stalled replica to be there", &in_flight).await;

    let (mut cached_max, mut in_flight_max) = (0, 0);
    for step in 0..60 {
        // About a mebibyte each.
        primary.insert("market", "bars", step * 40_000..(step + 1) * 40_000).await;
        cached_max = cached_max.max(publisher.figures().cache_bytes);
        in_flight_max = in_flight_max.max(in_flight().unwrap());
    }
    good.catches_up(&primary, "market").await;
    assert!(publisher.figures().raw_bytes > 40 << 20, "little was written");
    assert!(cached_max <= CACHE_BYTES && publisher.figures().cache_bytes <= CACHE_BYTES, "{cached_max} bytes are kept");
    assert!(in_flight_max <= SEND_BYTES, "{in_flight_max} bytes are on their way");
    eventually("the budget to be used", || (in_flight().unwrap() > SEND_BYTES / 4).then_some(())).await;
    let feeds = publisher.feeds();
    let bad = feeds.iter().find(|feed| feed.replica == "bad").unwrap();
    assert_eq!(bad.acknowledged, Seq::ZERO);
    assert!(stalled.connection.close_reason().is_none(), "it was left: {:?}", stalled.connection.close_reason());
    // Whoever goes away gives everything back.
    drop(stalled);
    follower.shutdown().await;
    publisher.shutdown().await;
}
