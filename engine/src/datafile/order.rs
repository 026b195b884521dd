//! The order in which a datafile holds its rows.

use std::cmp::Ordering;

use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_ord::ord::{DynComparator, make_comparator};
use arrow_row::{RowConverter, Rows, SortField};
use arrow_schema::{ArrowError, SortOptions};

/// Ascending, NULLs last.
pub(super) const SORT: SortOptions = SortOptions { descending: false, nulls_first: false };

/// Where a row lies: chunk and row in it. The form that `interleave` takes.
pub(super) type RowAddress = (usize, usize);

/// The rows of all batches, stably sorted by the columns at `keys`; `None` when they are in that order already.
pub(super) fn sorted(
    batches: &[RecordBatch],
    keys: &[usize],
    threads: usize,
) -> Result<Option<Vec<RowAddress>>, ArrowError> {
    if keys.is_empty() || is_sorted(batches, keys)? {
        return Ok(None);
    }
    let fields = keys.iter().map(|key| {
        let data_type = batches[0].column(*key).data_type().clone();
        SortField::new_with_options(data_type, SORT)
    });
    let converter = RowConverter::new(fields.collect())?;
    let total: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let mut rows = converter.empty_rows(total, 0);
    let mut addresses = Vec::with_capacity(total);
    for (chunk, batch) in batches.iter().enumerate() {
        let columns: Vec<ArrayRef> = keys.iter().map(|key| batch.column(*key).clone()).collect();
        converter.append(&mut rows, &columns)?;
        addresses.extend((0..batch.num_rows()).map(|row| (chunk, row)));
    }
    let keys = Keys::new(&rows);
    let mut order: Vec<(u128, usize)> = (0..total).map(|row| (keys.of(rows.row(row).data()), row)).collect();
    let compare = |a: &(u128, usize), b: &(u128, usize)| -> Ordering {
        let order = a.0.cmp(&b.0);
        if keys.complete { order } else { order.then_with(|| rows.row(a.1).cmp(&rows.row(b.1))) }
    };
    let slice = total.div_ceil(threads.max(1));
    std::thread::scope(|scope| {
        for part in order.chunks_mut(slice) {
            scope.spawn(|| part.sort_by(compare));
        }
    });
    // The stable sort finds the sorted runs and merges them.
    order.sort_by(compare);
    Ok(Some(order.into_iter().map(|(_, row)| addresses[row]).collect()))
}

/// Short keys for encoded rows: bytes that are the same in all rows decide nothing and are left out, and of the others
/// the first 16 mostly decide everything, beside the row's number and without a second look-up.
struct Keys {
    places: Vec<usize>,
    /// Rows with equal keys are equal.
    complete: bool,
}

impl Keys {
    fn new(rows: &Rows) -> Self {
        let mut all = rows.iter();
        let first = all.next().map(|row| row.data().to_vec()).unwrap_or_default();
        let mut differ = vec![0u8; first.len()];
        let mut equal_lengths = true;
        for row in all {
            let data = row.data();
            equal_lengths &= data.len() == first.len();
            // Places beyond the shortest row say nothing of it.
            differ.truncate(data.len());
            differ.iter_mut().zip(data).zip(&first).for_each(|((differ, a), b)| *differ |= a ^ b);
        }
        let places: Vec<usize> = (0..differ.len()).filter(|place| differ[*place] != 0).collect();
        let complete = equal_lengths && places.len() <= 16;
        Self { places: places.into_iter().take(16).collect(), complete }
    }

    fn of(&self, row: &[u8]) -> u128 {
        self.places.iter().fold(0, |key, place| key << 8 | u128::from(row[*place]))
    }
}

/// Ends at the first row that is out of order, so it costs little where sorting is needed.
fn is_sorted(batches: &[RecordBatch], keys: &[usize]) -> Result<bool, ArrowError> {
    for (index, batch) in batches.iter().enumerate() {
        let within = comparators(batch, batch, keys)?;
        if (1..batch.num_rows()).any(|row| compare(&within, row - 1, row).is_gt()) {
            return Ok(false);
        }
        let Some(next) = batches.get(index + 1) else { continue };
        let between = comparators(batch, next, keys)?;
        if batch.num_rows() > 0 && next.num_rows() > 0 && compare(&between, batch.num_rows() - 1, 0).is_gt() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn comparators(left: &RecordBatch, right: &RecordBatch, keys: &[usize]) -> Result<Vec<DynComparator>, ArrowError> {
    keys.iter().map(|key| make_comparator(left.column(*key), right.column(*key), SORT)).collect()
}

fn compare(comparators: &[DynComparator], left: usize, right: usize) -> Ordering {
    let orders = comparators.iter().map(|comparator| comparator(left, right));
    orders.into_iter().find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Int64Array, StringArray};
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn batch(keys: &[Option<&str>], numbers: &[i64]) -> RecordBatch {
        RecordBatch::try_from_iter([
            ("key", Arc::new(StringArray::from(keys.to_vec())) as ArrayRef),
            ("number", Arc::new(Int64Array::from(numbers.to_vec())) as ArrayRef),
        ])
        .unwrap()
    }

    #[test]
    fn sorted_rows_are_left_alone() {
        let batches = [batch(&[Some("a"), Some("a")], &[1, 2]), batch(&[Some("b"), None, None], &[0, -1, -1])];
        assert!(sorted(&batches, &[0, 1], 2).unwrap().is_none());
        assert!(sorted(&batches, &[], 2).unwrap().is_none());
    }

    #[test]
    fn ties_keep_their_order_and_nulls_come_last() {
        let long = "x".repeat(40);
        let longer = "x".repeat(40) + "y";
        let batches = [
            batch(&[None, Some(&longer), Some("b"), Some(&long)], &[0; 4]),
            batch(&[Some("b"), None, Some("a"), Some("")], &[0; 4]),
        ];
        for threads in [1, 2, 3, 8] {
            let order = sorted(&batches, &[0], threads).unwrap().unwrap();
            assert_eq!(order, [(1, 3), (1, 2), (0, 2), (1, 0), (0, 3), (0, 1), (0, 0), (1, 1)]);
        }
    }

    #[test]
    fn any_rows_are_sorted_like_their_values() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..200 {
            let (rows, letters, length) =
                (random.random_range(2..200), random.random_range(1..4), random.random_range(1..40));
            let mut keys: Vec<Option<String>> = Vec::new();
            for _ in 0..rows {
                let length = random.random_range(0..=length);
                let text: String = (0..length).map(|_| (b'a' + random.random_range(0..letters)) as char).collect();
                keys.push(random.random_bool(0.9).then_some(text));
            }
            let numbers: Vec<i64> = (0..rows).map(|_| random.random_range(-2..1_000_000)).collect();
            let texts: Vec<Option<&str>> = keys.iter().map(Option::as_deref).collect();
            let batches = [batch(&texts, &numbers)];
            let mut expected: Vec<usize> = (0..rows).collect();
            expected.sort_by_key(|row| (keys[*row].is_none(), keys[*row].clone(), numbers[*row]));
            let found = sorted(&batches, &[0, 1], 2).unwrap();
            let found = found.unwrap_or_else(|| (0..rows).map(|row| (0, row)).collect());
            assert_eq!(found.into_iter().map(|(_, row)| row).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn disorder_between_batches_is_seen() {
        let batches = [batch(&[Some("b")], &[1]), batch(&[Some("a")], &[1])];
        assert_eq!(sorted(&batches, &[0], 2).unwrap().unwrap(), [(1, 0), (0, 0)]);
    }
}
