//! One run of a target: the corpus first, then mutations of it; a finding is cut down and put into the corpus.
//!
//! It knows nothing of what is tested. An outcome is a short text; inputs with a new one are kept and mutated further,
//! which leads deeper than the corpus does, as coverage would.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use portcullis::peer::Sha256;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};

use crate::forge::recipe;

/// What a target says of an input: the kind of outcome, or what must not be.
pub type Verdict = Result<String, String>;

/// Fails a target with a sentence unless a condition holds.
#[macro_export]
macro_rules! must {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err(format!($($words)+));
        }
    };
}

/// Something that reads bytes from outside.
pub struct Target {
    /// Its name, and its corpus's.
    pub name: &'static str,
    /// Reads an input and holds the result against an oracle.
    pub check: fn(&[u8]) -> Verdict,
    /// Mutations of a run without a time.
    pub cases: usize,
    /// Words that mean something to it.
    pub words: &'static [&'static str],
}

/// The longest input that is made.
const LONGEST: usize = 64 * 1024;
/// Inputs beside the corpus.
const MOST_KEPT: usize = 4000;
/// No input takes this long, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a target for `PORTCULLIS_FUZZ_SECONDS`, or for its fixed mutations.
pub fn fuzz(target: &Target) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target.name);
    let time = std::env::var("PORTCULLIS_FUZZ_SECONDS").ok().map(|text| Duration::from_secs(text.parse().unwrap()));
    let mut pool = Vec::new();
    let mut outcomes = HashSet::new();
    for path in files(&corpus) {
        let input = fs::read(&path).unwrap();
        match run(target, &input) {
            Ok(outcome) => outcomes.insert(outcome),
            Err(why) => panic!("{}: {why}", path.display()),
        };
        pool.push(input);
    }
    assert!(!pool.is_empty(), "{} holds no input", corpus.display());
    // What earlier long runs found worth keeping.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(target.name);
    if time.is_some() {
        pool.extend(files(&kept).into_iter().map(|path| fs::read(path).unwrap()));
    }
    let began = Instant::now();
    let mut runner = if time.is_some() { TestRunner::new(Config::default()) } else { TestRunner::deterministic() };
    let (recipes, mut tried, mut new) = (recipe(), 0, 0);
    while time.map_or(tried < target.cases, |time| began.elapsed() < time) {
        tried += 1;
        let mut input = recipes.new_tree(&mut runner).unwrap().current().make(&pool, target.words);
        input.truncate(LONGEST);
        match run(target, &input) {
            Ok(outcome) => {
                if pool.len() < MOST_KEPT && outcomes.insert(outcome) {
                    new += 1;
                    if time.is_some() {
                        write(&kept, "", &input);
                    }
                    pool.push(input);
                }
            }
            Err(_) => found(target, &corpus, input),
        }
    }
    println!("{}: {tried} inputs, {} outcomes, {new} of them new", target.name, outcomes.len());
}

/// Cuts a finding down, puts it into the corpus and fails.
fn found(target: &Target, corpus: &Path, input: Vec<u8>) -> ! {
    let input = cut_down(input, |shorter| run(target, shorter).is_err());
    let why = run(target, &input).err().unwrap_or_default();
    let path = write(corpus, "found-", &input);
    panic!("{why}\n  input: {}\n  kept as {}: commit it with what puts it right", input.escape_ascii(), path.display());
}

/// Removes whatever the finding does not need, in smaller and smaller pieces, for a few seconds.
fn cut_down(mut input: Vec<u8>, fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let began = Instant::now();
    let mut piece = input.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < input.len() && began.elapsed() < Duration::from_secs(10) {
            let shorter = [&input[..at], &input[(at + piece).min(input.len())..]].concat();
            if fails(&shorter) {
                input = shorter;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    input
}

thread_local! {
    /// Where this thread panicked last, while a target ran.
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
    static RUNNING: RefCell<bool> = const { RefCell::new(false) };
}

/// Runs a target on one input; a panic is a finding like any other, told without noise.
fn run(target: &Target, input: &[u8]) -> Verdict {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |panic| {
            if RUNNING.with_borrow(|running| *running) {
                PANICKED.set(Some(panic.to_string()));
            } else {
                loud(panic);
            }
        }));
    });
    let began = Instant::now();
    RUNNING.set(true);
    let verdict = catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    RUNNING.set(false);
    let verdict = verdict.unwrap_or_else(|_| Err(PANICKED.take().unwrap_or_default()));
    if began.elapsed() > PATIENCE { Err(format!("it took {:?}", began.elapsed())) } else { verdict }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Writes an input under a name that is its digest's.
fn write(folder: &Path, prefix: &str, input: &[u8]) -> PathBuf {
    let digest = Sha256::of(input).to_string();
    let path = folder.join([prefix, &digest[..12]].concat());
    fs::create_dir_all(folder).unwrap();
    fs::write(&path, input).unwrap();
    path
}
