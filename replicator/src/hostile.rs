//! Peers that hold a good certificate and send bad bytes, against real nodes. The other side leaves with the reason, uses
//! nothing of it, and goes on serving others.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use tailrace_wal::{
    CommitTime, Epoch, FragmentNumber, HistoryHeader, HistoryId, NodeId, Part, PartEntry, PartHash, Payload, Position,
    RecordKind, Seq, TransactionNumber,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    ReplicationState, TaskState,
    support::{Authority, Site, eventually, reaches},
    tls,
    transport::transport,
    wire::{
        CHUNK_RAW_MAX, Compression, DataHeader, DataKind, FeedNumber, FollowerMessage, Offer, PROTOCOL, PrimaryMessage,
        RecordsEncoder, compress, encode_control,
    },
};

const SOON: Duration = Duration::from_secs(20);

async fn attach(site: &Site, primary: SocketAddr) -> (Connection, SendStream, RecvStream) {
    let mut client = tls::client_config(&site.tls).unwrap();
    client.transport_config(transport(true));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = endpoint.connect_with(client, primary, "127.0.0.1").unwrap().await.unwrap();
    let (send, receive) = connection.open_bi().await.unwrap();
    (connection, send, receive)
}

fn hello(cluster: &str, protocol: u32) -> Bytes {
    let message =
        FollowerMessage::Hello { protocol, version: "0".into(), cluster: cluster.into(), node: NodeId([9; 16]) };
    encode_control(&message).unwrap()
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.push(1);
    bytes.extend_from_slice(body);
    bytes
}

/// Sends bytes as a replica and returns why the primary closed.
async fn provoke(site: &Site, primary: SocketAddr, bytes: &[u8]) -> String {
    let (connection, mut send, _receive) = attach(site, primary).await;
    let _ = send.write_all(bytes).await;
    let closed = tokio::time::timeout(SOON, connection.closed()).await;
    closed.expect("the primary keeps the connection").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_survives_hostile_replicas() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let publisher = primary.publish().await;
    primary.market("market").await;
    let bad = Site::new(&authority, "bad").await;
    let address = publisher.local_addr();
    let position = Position::start(primary.position("market").unwrap().history);
    let after_hello = |messages: &[FollowerMessage]| {
        let mut bytes = hello("bad", PROTOCOL).to_vec();
        messages.iter().for_each(|message| bytes.extend_from_slice(&encode_control(message).unwrap()));
        bytes
    };
    let open = |feed, seq| FollowerMessage::Open {
        feed: FeedNumber(feed),
        position: Position { seq: Seq(seq), ..position },
        restart_seq: Seq(0),
        filter: None,
    };
    let feed = FeedNumber(1);
    let acknowledge = FollowerMessage::Acknowledge { feed, durable: Seq(9), applied: Seq(9), restart_seq: Seq(0) };
    let filtered = FollowerMessage::Open {
        feed,
        position,
        restart_seq: Seq(0),
        filter: Some(serde_json::json!({"table": "bars"})),
    };
    let fetch = FollowerMessage::RepairFetch { feed, datafile: 0, offset: 0, length: u32::MAX };
    let repair = FollowerMessage::RepairBegin { feed, history: position.history };
    let verify = FollowerMessage::VerifyBegin { feed, history: position.history, from_files: true };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![255; 64], "version 255"),
        ([&[255, 255, 255, 255, 1][..], &[0; 64]].concat(), "at most"),
        (framed(b"{\"type\":\"open\"}"), "does not parse"),
        (framed(b"\xff\xfe"), "does not parse"),
        (encode_control(&open(1, 0)).unwrap().to_vec(), "not hello"),
        (hello("bad", 99).to_vec(), "upgrade"),
        (hello("someone", PROTOCOL).to_vec(), "certificate is for"),
        ([hello("bad", PROTOCOL), hello("bad", PROTOCOL)].concat(), "hello twice"),
        (after_hello(&[open(1, 0), open(1, 0)]), "again"),
        (after_hello(&[open(1, 0), open(2, 0)]), "twice"),
        (after_hello(&[open(1, 0), acknowledge]), "acknowledged"),
        (after_hello(&[open(1, 0), FollowerMessage::Pull { feed, chunks: u32::MAX }]), "credit"),
        (after_hello(&[FollowerMessage::Pull { feed, chunks: 1 }]), "never opened"),
        (after_hello(&[FollowerMessage::Done { histories: vec![position.history] }]), "not asked about"),
        (after_hello(&[filtered]), "filter"),
        (after_hello(&[repair, fetch]), "piece"),
        (after_hello(&[FollowerMessage::VerifyEnd { feed }]), "never opened"),
        (after_hello(&[verify.clone(), verify]), "again"),
    ];
    for (bytes, expected) in cases {
        let reason = provoke(&bad, address, &bytes).await;
        assert!(reason.contains(expected), "{expected:?} was expected, it closed with {reason:?}");
    }
    // A position that is not of this history, or beyond its end, is answered, not punished; others are served all along.
    let good = Site::new(&authority, "b").await;
    let follower = good.follow(address).await;
    good.catches_up(&primary, "market").await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_survives_random_bytes() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let publisher = primary.publish().await;
    primary.market("market").await;
    let bad = Site::new(&authority, "bad").await;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..20 {
        let mut bytes = hello("bad", PROTOCOL).to_vec();
        let mut noise = vec![0; rng.random_range(5..2_000)];
        rng.fill_bytes(&mut noise);
        // Sometimes a plausible frame.
        if rng.random_bool(0.5) {
            let body = (noise.len() - 5) as u32;
            noise[..4].copy_from_slice(&body.to_le_bytes());
            noise[4] = 1;
        }
        bytes.extend_from_slice(&noise);
        let (connection, mut send, _receive) = attach(&bad, publisher.local_addr()).await;
        let _ = send.write_all(&bytes).await;
        let _ = send.finish();
        tokio::time::timeout(SOON, connection.closed()).await.expect("the primary keeps the connection");
    }
    let good = Site::new(&authority, "b").await;
    let follower = good.follow(publisher.local_addr()).await;
    good.catches_up(&primary, "market").await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

/// A primary that welcomes, offers one database, opens it and then sends `data` on a stream. Returns why the replica left.
async fn lure(endpoint: &Endpoint, offer: &Offer, data: &[u8]) -> String {
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let feed = FeedNumber(1);
    let say = |message: PrimaryMessage| encode_control(&message).unwrap();
    let welcome =
        PrimaryMessage::Welcome { protocol: PROTOCOL, version: "0".into(), cluster: "a".into(), node: NodeId([8; 16]) };
    send.write_all(&say(welcome)).await.unwrap();
    let histories = PrimaryMessage::Histories { enabled: true, more: false, histories: vec![offer.clone()] };
    send.write_all(&say(histories)).await.unwrap();
    // Hello and open came; what they say does not matter to a liar.
    let mut seen = Vec::new();
    let waited = tokio::time::timeout(SOON, async {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains("\"open\"") {
            match receive.read(&mut buffer).await {
                Ok(Some(length)) => seen.extend_from_slice(&buffer[..length]),
                _ => break,
            }
        }
    });
    waited.await.expect("the replica does not open");
    let opened = PrimaryMessage::Opened { feed, after: Seq(0), position: offer.position };
    send.write_all(&say(opened)).await.unwrap();
    // Credit is what shows that the replica knows the feed to be open.
    let waited = tokio::time::timeout(SOON, async {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains("\"pull\"") {
            match receive.read(&mut buffer).await {
                Ok(Some(length)) => seen.extend_from_slice(&buffer[..length]),
                _ => break,
            }
        }
    });
    waited.await.expect("the replica does not pull");
    let mut stream = connection.open_uni().await.unwrap();
    let _ = stream.write_all(data).await;
    let _ = stream.finish();
    let closed = tokio::time::timeout(SOON, connection.closed()).await;
    closed.expect("the replica keeps the connection").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_survives_hostile_primaries() {
    let authority = Authority::new();
    let (liar, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let mut server = tls::server_config(&liar.tls).unwrap();
    server.transport_config(transport(false));
    let endpoint = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let history = HistoryId([5; 16]);
    let position = Position { seq: Seq(100), ..Position::start(history) };
    let offer = Offer { name: "market".into(), history, position };
    let follower = replica.follow(endpoint.local_addr().unwrap()).await;

    let header = |change: &dyn Fn(&mut DataHeader), body: &[u8]| {
        let mut header = DataHeader {
            kind: DataKind::Chunk,
            compression: Compression::Raw,
            feed: FeedNumber(1),
            records: 1,
            number: 0,
            raw_len: body.len() as u32,
            encoded_len: body.len() as u32,
            first: Position { seq: Seq(1), ..Position::start(history) },
            last: Position { seq: Seq(1), ..Position::start(history) },
            offset: 0,
            body_hash: xxh3_64(body),
        };
        change(&mut header);
        [&header.encode()[..], body].concat()
    };
    let zeros = vec![0; 256];
    let bomb = compress(&vec![0; 64 << 20]).unwrap();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![0; 50], "ends after"),
        (vec![7; 128], "begins with"),
        (header(&|header| (header.raw_len, header.encoded_len) = (u32::MAX, u32::MAX), b""), "at most"),
        (header(&|header| header.encoded_len = CHUNK_RAW_MAX + (1 << 20), &zeros), "at most"),
        (header(&|header| header.records = u32::MAX, &zeros), "cannot hold"),
        (header(&|header| header.feed = FeedNumber(77), &zeros), "never opened"),
        (header(&|header| header.number = 1 << 40, &zeros), "is next"),
        (header(&|header| header.first.history = HistoryId([6; 16]), &zeros), "sent history"),
        (header(&|header| header.body_hash ^= 1, &zeros), "hash"),
        (header(&|header| header.encoded_len += 10, &zeros), "raw body"),
        (header(&|_| (), &zeros), "record"),
        (
            header(
                &|header| {
                    (header.compression, header.raw_len) = (Compression::Zstd, 4096);
                },
                &bomb,
            ),
            "decompress",
        ),
        (header(&|header| header.compression = Compression::Zstd, &zeros), "decompress"),
    ];
    for (data, expected) in cases {
        let reason = lure(&endpoint, &offer, &data).await;
        assert!(reason.contains(expected), "{expected:?} was expected, it left with {reason:?}");
    }
    assert_eq!(replica.rows("market", "bars"), None);
    eventually("the reason to be shown", || {
        follower.status().last_error.filter(|reason| reason.contains("protocol violation"))
    })
    .await;
    follower.shutdown().await;
    endpoint.close(0u32.into(), b"");
}

/// A record that continues its history and cannot be applied: tried again, then its database stops alone, visibly.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_too_often_stops_its_database() {
    let authority = Authority::new();
    let (liar, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let history = HistoryId([5; 16]);
    let entry = PartEntry {
        table: 7,
        schema_version: 1,
        operation: 1,
        first_ordinal: 0,
        rows: 1,
        length: 0,
        hash: PartHash(0),
        partition: Bytes::new(),
    };
    let part = Part::new(entry, vec![Bytes::from_static(b"no such table")]).unwrap();
    let payload = Payload::new(vec![part], vec![], None).unwrap();
    let (epoch, commit_time) = (Epoch { counter: 1, nonce: 7 }, CommitTime(1));
    let position = Position::start(history).follow(epoch, RecordKind::Commit, commit_time, payload.hash);
    let record = HistoryHeader {
        kind: RecordKind::Commit,
        history,
        epoch,
        transaction: TransactionNumber(1),
        fragment: FragmentNumber(0),
        seq: position.seq,
        restart_seq: position.seq,
        chain: position.chain,
        commit_time,
        payload_hash: payload.hash,
        directory_len: payload.directory_bytes.len() as u32,
        parts_len: 64,
    };
    let mut encoder = RecordsEncoder::default();
    encoder.add(&record, &payload);
    let body = encoder.finish().joined();
    let header = DataHeader {
        kind: DataKind::Chunk,
        compression: Compression::Raw,
        feed: FeedNumber(1),
        records: 1,
        number: 0,
        raw_len: body.len() as u32,
        encoded_len: body.len() as u32,
        first: position,
        last: position,
        offset: 0,
        body_hash: xxh3_64(&body),
    };
    let data = [&header.encode()[..], &body[..]].concat();
    let mut server = tls::server_config(&liar.tls).unwrap();
    server.transport_config(transport(false));
    let endpoint = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let follower = replica.follow(endpoint.local_addr().unwrap()).await;
    let offer = Offer { name: "market".into(), history, position };
    let luring = endpoint.clone();
    let lured = tokio::spawn(async move { lure(&luring, &offer, &data).await });
    let status = reaches(&follower, "market", ReplicationState::Stopped).await;
    assert!(status.reason.unwrap().contains("failed 3 times"));
    assert_eq!(status.remedy.as_deref(), Some("CALL start_cluster_replication()"));
    assert_eq!(follower.status().state, ReplicationState::Stopped);
    let tasks = follower.tasks();
    assert_eq!(tasks.len(), 1);
    assert_eq!((tasks[0].state, tasks[0].task.seq), (TaskState::Failed, Seq(1)));
    assert!(tasks[0].details.is_some() && tasks[0].worker.is_some());
    follower.retry();
    reaches(&follower, "market", ReplicationState::Enabled).await;
    follower.shutdown().await;
    lured.await.unwrap();
}

/// Chunks that are well formed, of records that are not the history's.
#[tokio::test(flavor = "multi_thread")]
async fn forged_records_are_forked_not_applied() {
    let authority = Authority::new();
    let (origin, liar, replica) =
        (Site::new(&authority, "o").await, Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    origin.market("market").await;
    let position = origin.position("market").unwrap();
    let mut tail = origin.engine.log().tail(position.history, Seq(0)).unwrap();
    let mut frame = tail.next().await.unwrap();
    frame.header.chain.0 ^= 1;
    let mut encoder = RecordsEncoder::default();
    encoder.add(&frame.header, &frame.payload);
    let body = encoder.finish().joined();
    let stated = frame.header.position();
    let header = DataHeader {
        kind: DataKind::Chunk,
        compression: Compression::Raw,
        feed: FeedNumber(1),
        records: 1,
        number: 0,
        raw_len: body.len() as u32,
        encoded_len: body.len() as u32,
        first: stated,
        last: stated,
        offset: 0,
        body_hash: xxh3_64(&body),
    };
    let data = [&header.encode()[..], &body[..]].concat();
    let mut server = tls::server_config(&liar.tls).unwrap();
    server.transport_config(transport(false));
    let endpoint = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let follower = replica.follow(endpoint.local_addr().unwrap()).await;
    let offer = Offer { name: "market".into(), history: position.history, position };
    let luring = Arc::new(endpoint.clone());
    let lured = tokio::spawn(async move { lure(&luring, &offer, &data).await });
    let status = reaches(&follower, "market", ReplicationState::Forked).await;
    assert_eq!(status.applied, Seq(0));
    assert_eq!(replica.position("market").unwrap().seq, Seq(0));
    follower.shutdown().await;
    lured.await.unwrap();
}
