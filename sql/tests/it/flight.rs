//! The Flight SQL server, with a client that is not ours, over loopback TLS.

use std::sync::Arc;

use arrow_flight::{
    error::FlightError,
    sql::{CommandGetDbSchemas, CommandGetTables, SqlInfo, client::FlightSqlServiceClient},
};
use datafusion::arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Int64Type},
    util::pretty::pretty_format_batches,
};
use futures::TryStreamExt;
use tonic::{Code, Status, transport::Channel};

use crate::{
    node::cells,
    site::{Served, Site},
};

type Client = FlightSqlServiceClient<Channel>;

async fn fetch(client: &mut Client, info: arrow_flight::FlightInfo) -> Result<Vec<RecordBatch>, FlightError> {
    let announced = info.clone().try_decode_schema().unwrap();
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let rows = client.do_get(endpoint.ticket.unwrap()).await?;
        batches.extend(rows.try_collect::<Vec<_>>().await?);
    }
    for batch in &batches {
        assert_eq!(*batch.schema(), announced, "what was announced is what came");
    }
    Ok(batches)
}

async fn rows(client: &mut Client, sql: &str) -> Result<Vec<String>, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    Ok(cells(&pretty_format_batches(&fetch(client, info).await?).unwrap().to_string()))
}

fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("{other}"),
    }
}

async fn bars(served: &Served) {
    let client = served.node.client(Some("market"));
    client
        .tag(
            "CREATE TABLE bars (id BIGINT NOT NULL, name TEXT, at TIMESTAMP(3)) PARTITION BY VALUE (day(at)) \
             ORDER BY (id)",
        )
        .await;
    client.tag("INSERT INTO bars VALUES (1, 'a', '2023-01-08 09:30:00.5'), (2, NULL, NULL)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_metadata_and_errors() {
    let site = Site::new();
    let served = site.node("siteb").await;
    bars(&served).await;
    let mut client = served.client(&site.issue("ann")).await;
    assert_eq!(
        rows(&mut client, "SELECT * FROM market.bars ORDER BY id").await.unwrap(),
        ["1|a|2023-01-08T09:30:00.500", "2||"]
    );
    assert_eq!(rows(&mut client, "SELECT current_user").await.unwrap(), ["ann"]);
    assert_eq!(rows(&mut client, "SHOW server_version").await.unwrap().len(), 1);
    assert!(rows(&mut client, "SELECT * FROM market.bars WHERE id > 5").await.unwrap().is_empty());

    let error = status(rows(&mut client, "SELECT * FROM market.barz").await.unwrap_err());
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().starts_with("42P01: table \"market.barz\" does not exist"), "{}", error.message());
    let error = status(rows(&mut client, "SELECT 1; SELECT 2").await.unwrap_err());
    assert!(error.message().starts_with("42601"), "{}", error.message());
    // An error in the middle of the rows.
    let error = status(rows(&mut client, "SELECT 1 / (id - 2) FROM market.bars").await.unwrap_err());
    assert!(error.message().starts_with("22012"), "{}", error.message());

    let info = client.get_catalogs().await.unwrap();
    assert_eq!(fetch(&mut client, info).await.unwrap()[0].column(0).as_string::<i32>().value(0), "tailrace");
    let filter = CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: Some("mark%".to_owned()) };
    let info = client.get_db_schemas(filter).await.unwrap();
    assert_eq!(fetch(&mut client, info).await.unwrap()[0].column(1).as_string::<i32>().value(0), "market");
    let all = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
    let info = client.get_tables(all).await.unwrap();
    let tables = fetch(&mut client, info).await.unwrap();
    let names: Vec<_> = tables[0].column(2).as_string::<i32>().iter().flatten().collect();
    assert!(names.contains(&"bars") && names.contains(&"remote_clusters"), "{names:?}");
    let info = client.get_table_types().await.unwrap();
    assert_eq!(fetch(&mut client, info).await.unwrap()[0].num_rows(), 2);
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.unwrap();
    assert_eq!(fetch(&mut client, info).await.unwrap()[0].num_rows(), 1);
    served.flight.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_something_needs_a_right() {
    let site = Site::new();
    let served = site.node("siteb").await;
    bars(&served).await;
    let mut client = served.client(&site.issue("ann")).await;
    let insert = "INSERT INTO market.bars VALUES (3, 'c', '2023-01-09')";
    for sql in [insert, "DROP TABLE market.bars", "CREATE DATABASE other", "CREATE TABLE market.t (a INT)"] {
        let error = status(client.execute_update(sql.to_owned(), None).await.unwrap_err());
        assert_eq!(error.code(), Code::PermissionDenied, "{sql}");
        assert!(error.message().contains("grant_right('ann'"), "{}", error.message());
    }
    for sql in ["CALL flush()", "CALL grant_right('ann', 'market', 'write')"] {
        assert_eq!(
            status(client.execute_update(sql.to_owned(), None).await.unwrap_err()).code(),
            Code::PermissionDenied
        );
    }
    for sql in ["BEGIN", "SET search_path TO market"] {
        assert_eq!(status(client.execute_update(sql.to_owned(), None).await.unwrap_err()).code(), Code::Unimplemented);
    }
    served.node.client(None).tag("CALL grant_right('ann', 'market', 'write')").await;
    assert_eq!(client.execute_update(insert.to_owned(), None).await.unwrap(), 1);
    assert_eq!(rows(&mut client, "SELECT count(*) FROM market.bars").await.unwrap(), ["3"]);
    // As a query, it is run when its rows are asked for, once.
    let info = client.execute(insert.replace('3', "4"), None).await.unwrap();
    assert!(fetch(&mut client, info).await.unwrap().is_empty());
    assert_eq!(rows(&mut client, "SELECT count(*) FROM market.bars").await.unwrap(), ["4"]);
    let error = status(client.execute_update("SELECT 1".to_owned(), None).await.unwrap_err());
    assert!(error.message().starts_with("42601"), "{}", error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_take_parameters() {
    let site = Site::new();
    let served = site.node("siteb").await;
    bars(&served).await;
    served.node.client(None).tag("CALL grant_right('ann', 'market', 'write')").await;
    let mut client = served.client(&site.issue("ann")).await;

    let sql = "SELECT name FROM market.bars WHERE id = $1";
    let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
    assert_eq!(prepared.parameter_schema().unwrap().field(0).data_type(), &DataType::Int64);
    assert_eq!(prepared.dataset_schema().unwrap().field(0).name(), "name");
    let parameters = |column: ArrayRef| RecordBatch::try_from_iter([("$1", column)]).unwrap();
    prepared.set_parameters(parameters(Arc::new(Int64Array::from(vec![1])))).unwrap();
    let info = prepared.execute().await.unwrap();
    let found = fetch(&mut client, info).await.unwrap();
    assert_eq!(found[0].column(0).as_string::<i32>().value(0), "a");
    // Without them.
    let mut bare = client.prepare(sql.to_owned(), None).await.unwrap();
    let info = bare.execute().await.unwrap();
    assert!(status(fetch(&mut client, info).await.unwrap_err()).message().starts_with("08P01"));

    // Several rows are one transaction: all of them, or none.
    let mut insert =
        client.prepare("INSERT INTO market.bars (id, name) VALUES ($1, $2)".to_owned(), None).await.unwrap();
    let several = |ids: Vec<Option<i64>>| {
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!("n{id:?}"))));
        RecordBatch::try_from_iter([("$1", Arc::new(Int64Array::from(ids)) as ArrayRef), ("$2", names)]).unwrap()
    };
    insert.set_parameters(several((10..20).map(Some).collect())).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 10);
    insert.set_parameters(several(vec![Some(20), None])).unwrap();
    assert!(status(insert.execute_update().await.unwrap_err()).message().starts_with("23502"));
    let found = {
        let info = client.execute("SELECT count(*) FROM market.bars".to_owned(), None).await.unwrap();
        fetch(&mut client, info).await.unwrap()
    };
    assert_eq!(found[0].column(0).as_primitive::<Int64Type>().value(0), 12);
    insert.close().await.unwrap();

    // A handle is its owner's.
    let info = prepared.execute().await.unwrap();
    let mut other = served.client(&site.issue("bob")).await;
    let error = status(fetch(&mut other, info).await.unwrap_err());
    assert!(error.message().starts_with("26000"), "{}", error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_certificates_of_the_authority_that_carry_a_name_may_connect() {
    let site = Site::new();
    let served = site.node("siteb").await;
    let good = site.issue("ann");
    let elsewhere = Site::new();
    let stranger = elsewhere.issue("ann");
    let nameless = site.issue_with("nameless", None);
    let other = site.issue_with("other", Some("tailrace://other/ann"));
    for (what, shown) in [
        ("none", None),
        ("another authority's", Some(&stranger)),
        ("no name", Some(&nameless)),
        ("another name", Some(&other)),
    ] {
        // With TLS 1.3 a client may think that it is connected until it says something.
        let refused = match served.channel(shown, &good.ca).await {
            Err(_) => true,
            Ok(channel) => FlightSqlServiceClient::new(channel).execute("SELECT 1".to_owned(), None).await.is_err(),
        };
        assert!(refused, "{what}");
    }
    let mut client = served.client(&good).await;
    assert_eq!(rows(&mut client, "SELECT 1").await.unwrap(), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_when_its_client_goes_and_when_the_server_stops() {
    const FOREVER: &str = "SELECT value FROM generate_series(1, 1000000000000)";
    let site = Site::new();
    let served = site.node("siteb").await;
    let ann = site.issue("ann");
    let mut client = served.client(&ann).await;
    // More than are allowed at once, one after the other: each gives its place back.
    for _ in 0..300 {
        let info = client.execute(FOREVER.to_owned(), None).await.unwrap();
        let mut rows = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        assert!(rows.try_next().await.unwrap().is_some());
    }
    let info = client.execute(FOREVER.to_owned(), None).await.unwrap();
    let mut rows = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    rows.try_next().await.unwrap().unwrap();
    served.flight.shutdown().await;
    let ended = loop {
        match rows.try_next().await {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert!(ended.is_err(), "a stopped query does not look complete");
}
