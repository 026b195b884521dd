//! Inputs that are kept, and inputs made of them: what fuzz targets find stays found without them.

use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng, rngs::StdRng};

/// What hides at the ends of number types, as text.
const NUMBERS: [&[u8]; 6] =
    [b"0", b"4294967295", b"9223372036854775807", b"18446744073709551615", b"-9223372036854775808", b"1e30"];

/// Inputs that are kept for one target.
#[derive(Debug)]
pub struct Corpus {
    inputs: Vec<(PathBuf, Vec<u8>)>,
}

impl Corpus {
    /// Those of `target` in `folder`, which is `testdata/fuzz`. Panics where there are none.
    pub fn read(folder: &Path, target: &str) -> Self {
        let folder = folder.join(target);
        let failed = |error: std::io::Error| -> ! { panic!("{}: {error}", folder.display()) };
        let listed = std::fs::read_dir(&folder).unwrap_or_else(|error| failed(error));
        let mut inputs: Vec<_> = listed
            .map(|entry| {
                let path = entry.unwrap_or_else(|error| failed(error)).path();
                let input = std::fs::read(&path).unwrap_or_else(|error| failed(error));
                (path, input)
            })
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "no inputs in {}", folder.display());
        Self { inputs }
    }

    /// The inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &[u8]> {
        self.inputs.iter().map(|(_, input)| input.as_slice())
    }

    /// Calls `read` with every input and with `variants` of each. The environment's `CORPUS_SEED` repeats a run; the seed
    /// is printed.
    pub fn run(&self, variants: usize, read: fn(&[u8])) {
        let seed = std::env::var("CORPUS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
        println!("seed {seed}: CORPUS_SEED={seed} repeats it");
        let mut random = StdRng::seed_from_u64(seed);
        for (path, input) in &self.inputs {
            println!("{}", path.display());
            read(input);
        }
        for (path, input) in &self.inputs {
            println!("variants of {}", path.display());
            for _ in 0..variants {
                read(&self.varied(input, &mut random));
            }
        }
    }

    /// `input` with a few bytes changed, cut, doubled, or replaced by another input's.
    fn varied(&self, input: &[u8], random: &mut StdRng) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..random.random_range(1..6) {
            if bytes.is_empty() {
                break;
            }
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..9) {
                0 => bytes.truncate(at),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
                2 => {
                    let end = (at + random.random_range(1..=64)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                3 => {
                    let other = &self.inputs[random.random_range(0..self.inputs.len())].1;
                    if other.is_empty() {
                        continue;
                    }
                    let from = random.random_range(0..other.len());
                    let len = random.random_range(1..=64).min(other.len() - from).min(bytes.len() - at);
                    bytes[at..at + len].copy_from_slice(&other[from..from + len]);
                }
                4 => {
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].fill(0xff);
                }
                5 => {
                    // The next number in a text.
                    let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) else { continue };
                    let rest = &bytes[at + digit..];
                    let len = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
                    let number = NUMBERS[random.random_range(0..NUMBERS.len())];
                    bytes.splice(at + digit..at + digit + len, number.iter().copied());
                }
                _ => bytes[at] ^= 1 << random.random_range(0..8),
            }
        }
        bytes
    }
}
