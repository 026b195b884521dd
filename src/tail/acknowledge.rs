//! Which transactions a subscription may be told of: those that were written whole.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{TailError, statement::quoted};

/// What was written, and what the subscription knows of it.
pub(super) struct Acknowledging {
    client: Client,
    subscription: String,
    /// Counts the rows of one transaction; its seq goes between.
    count: [String; 2],
    /// The transaction whose rows come now, and how many came.
    current: Option<(u64, u64)>,
    /// Everything up to here was written.
    whole: Option<u64>,
    acknowledged: Option<u64>,
}

impl Acknowledging {
    pub(super) fn new(client: Client, subscription: &str, count: [String; 2]) -> Self {
        Self { client, subscription: subscription.to_owned(), count, current: None, whole: None, acknowledged: None }
    }

    /// A row was written.
    pub(super) fn written(&mut self, seq: u64) {
        match &mut self.current {
            Some((current, rows)) if *current == seq => *rows += 1,
            current => {
                // Transactions come one after the other: with the first row of the next, the last is whole.
                if let Some((before, _)) = current.replace((seq, 1)) {
                    self.whole = Some(before);
                }
            }
        }
    }

    /// Whether a transaction is there that may be whole or not.
    pub(super) fn is_open(&self) -> bool {
        self.current.is_some()
    }

    /// Nothing more comes: the last one is whole.
    pub(super) fn complete(&mut self) {
        if let Some((seq, _)) = self.current.take() {
            self.whole = Some(seq);
        }
    }

    /// Asks whether the last transaction is whole, and acknowledges it then.
    pub(super) async fn look(&mut self) -> Result<(), TailError> {
        let Some((seq, rows)) = self.current else { return Ok(()) };
        let messages = self.client.simple_query(&self.count.join(&seq.to_string())).await?;
        let count = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse::<u64>().ok(),
            _ => None,
        });
        if count == Some(rows) {
            self.complete();
            self.send().await?;
        }
        Ok(())
    }

    /// Acknowledges what is whole; what was written has been flushed.
    pub(super) async fn send(&mut self) -> Result<(), TailError> {
        if let Some(seq) = self.whole
            && self.acknowledged < Some(seq)
        {
            let name = quoted(&self.subscription, '\'');
            self.client.batch_execute(&format!("CALL advance_subscription({name}, {seq})")).await?;
            self.acknowledged = Some(seq);
        }
        Ok(())
    }
}
