//! What filters say of a feed's own columns: where to begin, and where to end. The filters are applied all the same.

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    common::ScalarValue,
    logical_expr::{BinaryExpr, Expr, Operator},
};
use tailrace_engine::{COMMIT_TIME_COLUMN, SEQ_COLUMN};
use tailrace_wal::{CommitTime, Seq};

/// Bounds, both included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) from: Option<Seq>,
    pub(super) upto: Option<Seq>,
    pub(super) from_time: Option<CommitTime>,
    pub(super) upto_time: Option<CommitTime>,
}

impl Bounds {
    /// Those that follow from filters that all must hold.
    pub(super) fn of(filters: &[Expr]) -> Self {
        let mut bounds = Self::default();
        filters.iter().for_each(|filter| bounds.add(filter));
        bounds
    }

    fn add(&mut self, filter: &Expr) {
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                self.add(left);
                self.add(right);
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (&**left, &**right) {
                (Expr::Column(column), Expr::Literal(value, _)) => self.compare(&column.name, *op, value),
                (Expr::Literal(value, _), Expr::Column(column)) => {
                    if let Some(op) = op.swap() {
                        self.compare(&column.name, op, value);
                    }
                }
                _ => {}
            },
            Expr::Between(between) if !between.negated => {
                if let Expr::Column(column) = &*between.expr {
                    for (op, bound) in [(Operator::GtEq, &between.low), (Operator::LtEq, &between.high)] {
                        if let Expr::Literal(value, _) = &**bound {
                            self.compare(&column.name, op, value);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn compare(&mut self, column: &str, op: Operator, value: &ScalarValue) {
        let (lower, upper) = match op {
            Operator::Eq => (true, true),
            Operator::Gt | Operator::GtEq => (true, false),
            Operator::Lt | Operator::LtEq => (false, true),
            _ => return,
        };
        match column {
            SEQ_COLUMN => {
                let Ok(ScalarValue::Int64(Some(seq))) = value.cast_to(&DataType::Int64) else { return };
                let exact = value.data_type().is_integer();
                // What is not a whole number bounds as far as its neighbours allow.
                let (low, high) = match op {
                    Operator::Gt if exact => (seq.saturating_add(1), seq),
                    Operator::Lt if exact => (seq, seq.saturating_sub(1)),
                    _ if exact => (seq, seq),
                    _ => (seq.saturating_sub(1), seq.saturating_add(1)),
                };
                if lower {
                    self.from = self.from.max(Some(Seq(low.max(0).unsigned_abs())));
                }
                if upper {
                    let high = Seq(high.max(0).unsigned_abs());
                    self.upto = Some(self.upto.map_or(high, |upto| upto.min(high)));
                }
            }
            COMMIT_TIME_COLUMN => {
                let micros = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
                if !matches!(value.data_type(), DataType::Timestamp(_, Some(_))) {
                    return;
                }
                let Ok(ScalarValue::TimestampMicrosecond(Some(time), _)) = value.cast_to(&micros) else { return };
                // Nanoseconds are cut off.
                if lower {
                    self.from_time = self.from_time.max(Some(CommitTime(time.saturating_sub(1))));
                }
                if upper {
                    let high = CommitTime(time.saturating_add(1));
                    self.upto_time = Some(self.upto_time.map_or(high, |upto| upto.min(high)));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{col, lit};

    use super::*;

    fn seqs(filter: Expr) -> (Option<u64>, Option<u64>) {
        let Bounds { from, upto, .. } = Bounds::of(&[filter]);
        (from.map(|seq| seq.0), upto.map(|seq| seq.0))
    }

    #[test]
    fn comparisons_bound_and_nothing_else_does() {
        let seq = || col(SEQ_COLUMN);
        assert_eq!(seqs(seq().gt(lit(5i64)).and(seq().lt(lit(9i64)))), (Some(6), Some(8)));
        assert_eq!(seqs(seq().eq(lit(5i64))), (Some(5), Some(5)));
        assert_eq!(seqs(lit(5i64).lt_eq(seq())), (Some(5), None));
        assert_eq!(seqs(seq().between(lit(2i64), lit(3i64))), (Some(2), Some(3)));
        assert_eq!(seqs(seq().gt(lit(2.5f64))), (Some(1), None));
        assert_eq!(seqs(seq().gt(lit(-5i64))), (Some(0), None));
        assert_eq!(seqs(seq().gt(lit(5i64)).or(seq().lt(lit(2i64)))), (None, None));
        assert_eq!(seqs(seq().not_eq(lit(5i64))), (None, None));
        let bounds = Bounds::of(&[seq().gt(lit(5i64)), seq().gt_eq(lit(3i64)), seq().lt(lit(7i64))]);
        assert_eq!((bounds.from, bounds.upto), (Some(Seq(6)), Some(Seq(6))));
        let time = ScalarValue::TimestampMicrosecond(Some(100), Some("UTC".into()));
        let bounds = Bounds::of(&[col(COMMIT_TIME_COLUMN).gt(lit(time))]);
        assert_eq!((bounds.from_time, bounds.upto_time), (Some(CommitTime(99)), None));
    }
}
