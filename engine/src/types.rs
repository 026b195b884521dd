//! Column types.

use arrow_schema::DataType;

use crate::Result;

/// Accepts the types that tables can have: integers of 8 to 64 bits, signed and unsigned; 32 and 64 bit floats;
/// Decimal128; Boolean; Utf8; Binary; Date32; Timestamp of any unit with and without zone. Anything else is refused by
/// name, with the nearest supported type where there is one.
pub fn check_type(_data_type: &DataType) -> Result<()> {
    todo!()
}
