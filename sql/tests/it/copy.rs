use std::{fs::File, sync::Arc};

use datafusion::{
    arrow::{
        array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, TimestampMillisecondArray},
        datatypes::{DataType, Field, Schema, TimeUnit},
    },
    parquet::{arrow::ArrowWriter, file::properties::WriterProperties},
};

use crate::node::{Client, Node};

async fn table(client: &Client) {
    client
        .tag(
            "CREATE TABLE bars (security_id TEXT NOT NULL, datetime TIMESTAMP(0), px DOUBLE PRECISION, volume INT) \
             PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime)",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn csv_with_and_without_a_header() {
    let (node, client) = Node::market().await;
    table(&client).await;
    let text = "VOLUME,security_id,datetime,px\n100,\"000,1\",2023-01-08 09:30:00,1.5\n,\"a \"\"b\"\"\nc\",2023-01-09T09:30:00.000,\n";
    let file = node.file("bars.csv", text);
    assert_eq!(client.tag(&format!("COPY bars FROM '{}' (HEADER true)", file.display())).await, "COPY 2");
    assert_eq!(client.rows("SELECT security_id, volume, px FROM bars WHERE volume = 100").await, ["000,1|100|1.5"]);
    assert_eq!(client.rows("SELECT length(security_id) FROM bars WHERE px IS NULL").await, ["7"]);
    let file = node.file("plain.dat", "x;1\ny;2");
    let sql = format!("COPY market.bars (security_id, volume) FROM '{}' (FORMAT csv, DELIMITER ';')", file.display());
    assert_eq!(client.tag(&sql).await, "COPY 2");
    assert_eq!(client.rows("SELECT count(*), sum(volume) FROM bars").await, ["4|103"]);
    assert_eq!(
        client.tag(&format!("COPY bars FROM '{}' CSV HEADER", node.file("empty.csv", "").display())).await,
        "COPY 0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_blocks_of_csv_keep_every_record() {
    let (node, client) = Node::market().await;
    client.tag("CREATE TABLE t (n INT, text TEXT)").await;
    let text: String =
        (0..200_000).map(|n| format!("{n},\"line one of {n}\nline two; filler filler filler\"\n")).collect();
    assert!(text.len() > 9 << 20);
    let file = node.file("t.csv", &text);
    assert_eq!(client.tag(&format!("COPY t FROM '{}'", file.display())).await, "COPY 200000");
    assert_eq!(
        client.rows("SELECT count(DISTINCT n), sum(n), min(length(text)) FROM t").await,
        ["200000|19999900000|44"]
    );
    let broken = text.replacen("\n150000,", "\nfifteen,", 1);
    let error = client.error(&format!("COPY t FROM '{}'", node.file("broken.csv", broken).display())).await;
    assert_eq!(error.sqlstate, "22P02", "{error:?}");
    assert!(error.message.contains("fifteen") && error.detail.clone().unwrap().contains("record 150001"), "{error:?}");
    // Nothing of it was committed.
    assert_eq!(client.rows("SELECT count(*) FROM t").await, ["200000"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_columns_are_matched_by_name() {
    let (node, client) = Node::market().await;
    table(&client).await;
    let rows = 300_000_i64;
    let schema = Arc::new(Schema::new(vec![
        Field::new("Volume", DataType::Int64, true),
        Field::new("px", DataType::Int64, true),
        Field::new("SECURITY_ID", DataType::LargeUtf8, true),
        Field::new("datetime", DataType::Timestamp(TimeUnit::Millisecond, None), true),
    ]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(0..rows)),
        Arc::new(Int64Array::from_iter_values((0..rows).map(|n| n * 2))),
        Arc::new(LargeStringArray::from_iter_values((0..rows).map(|n| format!("{:06}", n % 5000)))),
        Arc::new(TimestampMillisecondArray::from_iter_values((0..rows).map(|n| 1_673_170_200_000 + n % 242 * 60_000))),
    ];
    let path = node.file("bars.parquet", "");
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(70_000)).build();
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), schema.clone(), Some(properties)).unwrap();
    writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
    writer.close().unwrap();

    assert_eq!(client.tag(&format!("COPY bars FROM '{}'", path.display())).await, "COPY 300000");
    let sums = client
        .rows("SELECT count(*), sum(volume), sum(px), count(DISTINCT security_id), min(datetime) FROM bars")
        .await;
    assert_eq!(sums, ["300000|44999850000|89999700000.0|5000|2023-01-08T09:30:00"]);
    // Row by row, columns that were read by different threads belong together.
    assert_eq!(client.rows("SELECT count(*) FROM bars WHERE px <> volume * 2").await, ["0"]);
    let matched = "SELECT count(*) FROM bars WHERE cast(security_id AS int) <> volume % 5000";
    assert_eq!(client.rows(matched).await, ["0"]);

    assert_eq!(client.tag(&format!("COPY bars (security_id) FROM '{}'", path.display())).await, "COPY 300000");
    client
        .tag("CREATE TABLE narrow (volume SMALLINT, px DOUBLE PRECISION, security_id TEXT, datetime TIMESTAMP)")
        .await;
    let error = client.error(&format!("COPY narrow FROM '{}'", path.display())).await;
    assert_eq!((error.sqlstate.as_ref(), error.message.contains("volume")), ("22003", true), "{error:?}");
    client.tag("CREATE TABLE other (volume INT)").await;
    assert_eq!(client.state(&format!("COPY other FROM '{}'", path.display())).await, "42703");
    assert_eq!(client.tag(&format!("COPY other (volume) FROM '{}'", path.display())).await, "COPY 300000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_may_not_or_cannot_be_read() {
    let (node, client) = Node::market().await;
    table(&client).await;
    let outside = node.folder.path().canonicalize().unwrap().join("outside.csv");
    std::fs::write(&outside, "x\n").unwrap();
    assert_eq!(client.state(&format!("COPY bars FROM '{}'", outside.display())).await, "42501");
    assert_eq!(client.state("COPY bars FROM '/etc/passwd' (FORMAT csv)").await, "42501");
    let damaged = node.file("damaged.parquet", "PAR1 nothing PAR1");
    assert_eq!(client.state(&format!("COPY bars FROM '{}'", damaged.display())).await, "22P04");
    let unknown = node.file("bars.xyz", "");
    assert_eq!(client.state(&format!("COPY bars FROM '{}'", unknown.display())).await, "22023");
    let ragged = node.file("ragged.csv", "a,2023-01-08,1,2\nb,2023-01-08\n");
    assert_eq!(client.state(&format!("COPY bars FROM '{}'", ragged.display())).await, "22P04");
    let header = node.file("header.csv", "security_id,datetime,px,volume\na,2023-01-08,1,2\n");
    let error = client.error(&format!("COPY bars FROM '{}'", header.display())).await;
    assert!(error.hint.unwrap().contains("HEADER"));
    let missing = node.file("null.csv", ",2023-01-08 09:30:00,1,2\n");
    assert_eq!(client.state(&format!("COPY bars FROM '{}'", missing.display())).await, "23502");
    assert_eq!(client.rows("SELECT count(*) FROM bars").await, ["0"]);
    let shut = Node::with(|config| config.files_allow.clear()).await;
    shut.client(None).tag("CREATE DATABASE market; CREATE TABLE market.t (a TEXT)").await;
    let error = shut.client(Some("market")).error(&format!("COPY t FROM '{}'", outside.display())).await;
    assert!(error.hint.unwrap().contains("[files] allow"));
}
