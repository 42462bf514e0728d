//! The house's rules, checked on the source text: which module may name which, where `unsafe` and tokio may stand, how
//! long a file may be, that the walk is whole, that every bound is used and that README's promises have their tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 700;

/// Modules that everybody may use. They do no I/O and know nothing of the others.
const VOCABULARY: &[&str] =
    &["checksum", "clock", "config", "digest", "grid", "ids", "limits", "manifest", "profile", "relpath", "units"];

/// What each module may name beside itself and the vocabulary. `main` is the binary. The direction is
/// `cli -> control -> engine -> {net, disk, wire, journal}` and `{engine, net, disk} -> sys`.
const EDGES: &[(&str, &[&str])] = &[
    ("main", &["cli", "sys"]),
    ("cli", &["control", "engine", "disk", "journal", "doctor"]),
    ("control", &["engine"]),
    ("engine", &["net", "disk", "wire", "journal", "sys"]),
    ("doctor", &["net", "disk", "sys"]),
    ("net", &["sys"]),
    ("disk", &["sys"]),
    ("wire", &[]),
    ("journal", &[]),
];

/// Where tokio's name may not stand: bytes in, values out; plain system calls; threads of their own.
const WITHOUT_TOKIO: &[&str] =
    &["src/sys/", "src/net/", "src/disk/", "src/wire/", "src/journal/", "src/engine/worker/"];

/// The only files that name tokio-uring, so that it can be replaced.
const TOKIO_URING: &[&str] = &["src/engine/coordinator.rs", "src/engine/commit.rs"];

struct Source {
    /// Relative to the package.
    path: String,
    text: String,
    /// The text without comments and without what stands in string and character literals.
    code: String,
}

impl Source {
    /// The top-level module of a file below `src`.
    fn module(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.split(['/', '.']).next().unwrap_or_default()
    }

    /// How many `super` lead from the file's own module to the crate.
    fn depth(&self) -> usize {
        let parts = self.path.trim_end_matches(".rs").trim_end_matches("/mod").split('/').count();
        parts - 1
    }
}

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), found);
        } else if entry.path().extension().is_some_and(|e| e == "rs") {
            found.push(entry.path());
        }
    }
}

/// Rust files below these folders of the package; a folder that is not there has none.
fn sources(folders: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    for folder in folders.iter().map(|f| package().join(f)).filter(|f| f.is_dir()) {
        files_below(&folder, &mut found);
    }
    found.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(package()).unwrap().to_str().unwrap().to_owned();
        Source { path, code: code_only(&text), text }
    };
    found.into_iter().map(read).collect()
}

/// Blanks comments and the insides of literals, so that only what the compiler acts on is left. Lines stay lines.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |out: &mut String, from: usize, to: usize| {
        out.extend(text[from..to].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
    };
    while at < bytes.len() {
        let rest = &text[at..];
        let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let end = if rest.starts_with("//") {
            at + rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            at + rest.find("*/").map_or(rest.len(), |i| i + 2)
        } else if let Some(len) = (!word_before).then(|| raw_string(rest)).flatten() {
            at + len
        } else if rest.starts_with('"') {
            at + quoted(rest, b'"')
        } else if let Some(len) = character(rest) {
            at + len
        } else {
            let c = rest.chars().next().unwrap();
            out.push(c);
            at += c.len_utf8();
            continue;
        };
        blank(&mut out, at, end);
        at = end;
    }
    out
}

/// The length of a raw string that begins here.
fn raw_string(rest: &str) -> Option<usize> {
    let start = rest.strip_prefix("br").or_else(|| rest.strip_prefix("cr")).or_else(|| rest.strip_prefix('r'))?;
    let hashes = start.len() - start.trim_start_matches('#').len();
    let body = start[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(rest.len() - body.len() + body.find(&close)? + close.len())
}

/// The length of a quoted literal, the quotes included.
fn quoted(rest: &str, quote: u8) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The length of a character literal; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    if body.starts_with('\\') {
        return Some(quoted(rest, b'\''));
    }
    let c = body.chars().next()?;
    body[c.len_utf8()..].starts_with('\'').then(|| c.len_utf8() + 2)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `code` as a word of its own.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(is_word)
            && !code[at + word.len()..].chars().next().is_some_and(is_word)
    })
}

/// The top-level modules that `source` names: by `crate::`, by `longhaul::` (the binary), and by `super::` chains that
/// reach the crate.
fn named_modules(source: &Source) -> BTreeSet<String> {
    let code: String =
        source.code.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ::", "::").replace(":: ", "::");
    let up = "super::".repeat(source.depth());
    let prefixes = ["crate::".to_owned(), "longhaul::".to_owned(), up];
    let mut named = BTreeSet::new();
    for prefix in prefixes.iter().filter(|p| !p.is_empty()) {
        for (at, _) in code.match_indices(prefix.as_str()) {
            if code[..at].chars().next_back().is_some_and(is_word) {
                continue;
            }
            firsts(&code[at + prefix.len()..], &mut named);
        }
    }
    named
}

/// The first names of a path, or of each path of a group in braces.
fn firsts(rest: &str, named: &mut BTreeSet<String>) {
    let word = |text: &str| -> String { text.trim_start().chars().take_while(|c| is_word(*c)).collect() };
    let Some(group) = rest.strip_prefix('{') else {
        named.insert(word(rest));
        return;
    };
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                named.insert(word(&group[start..at]));
                return;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                named.insert(word(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
}

fn none(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn modules_name_only_what_lies_below_them() {
    let sources = sources(&["src"]);
    let modules: BTreeSet<&str> = sources.iter().map(Source::module).collect();
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
    for source in &sources {
        let from = source.module();
        if matches!(from, "lib" | "testing") {
            continue; // the map, and the helpers of tests
        }
        let allowed = EDGES.iter().find(|(name, _)| *name == from).map_or(&[][..], |(_, to)| *to);
        for to in named_modules(source) {
            if to == from || !modules.contains(to.as_str()) {
                continue;
            }
            *seen.entry((from.to_owned(), to.clone())).or_default() += 1;
            let vocabulary = VOCABULARY.contains(&to.as_str()) && from != "sys";
            if !vocabulary && !allowed.contains(&to.as_str()) {
                wrong.push(format!("{} names {to}", source.path));
            }
        }
    }
    none(wrong, "an edge that the house does not have");
    // The reader of this test wants to know that it looks at something.
    for (from, to) in [("cli", "control"), ("control", "engine"), ("engine", "wire"), ("disk", "sys"), ("wire", "ids")]
    {
        assert!(seen.contains_key(&(from.to_owned(), to.to_owned())), "{from} -> {to} was not found");
    }
}

#[test]
fn every_module_has_its_place() {
    let known: BTreeSet<&str> = VOCABULARY
        .iter()
        .copied()
        .chain(EDGES.iter().map(|(name, _)| *name))
        .chain(["sys", "lib", "testing"])
        .collect();
    let here = sources(&["src"]).iter().map(|s| s.module().to_owned()).collect::<BTreeSet<_>>();
    let new = here.into_iter().filter(|m| !known.contains(m.as_str())).collect();
    none(new, "a module that this test does not know: give it its layer");
}

#[test]
fn unsafe_stands_in_sys_only() {
    let outside = |s: &&Source| !s.path.starts_with("src/sys/") && has_word(&s.code, "unsafe");
    let all = sources(&["src", "tests", "benches"]);
    none(all.iter().filter(outside).map(|s| s.path.clone()).collect(), "`unsafe` outside src/sys");
    assert!(all.iter().any(|s| s.path.starts_with("src/sys/") && has_word(&s.code, "unsafe")));
}

#[test]
fn tokio_stays_out_of_workers_and_parts() {
    let all = sources(&["src"]);
    let wrong = all.iter().filter(|s| {
        (WITHOUT_TOKIO.iter().any(|dir| s.path.starts_with(dir)) && has_word(&s.code, "tokio"))
            || (!TOKIO_URING.contains(&s.path.as_str()) && has_word(&s.code, "tokio_uring"))
    });
    none(wrong.map(|s| s.path.clone()).collect(), "tokio or tokio-uring where it may not be named");
    for path in TOKIO_URING {
        assert!(all.iter().any(|s| s.path == *path && has_word(&s.code, "tokio_uring")), "{path} is not what it was");
    }
}

#[test]
fn files_are_short_enough_to_read() {
    let long = |s: &&Source| s.text.lines().count() > LINES_MAX;
    let all = sources(&["src", "tests", "benches"]);
    let long = all.iter().filter(long).map(|s| format!("{}: {} lines", s.path, s.text.lines().count())).collect();
    none(long, "a file of more than 700 lines");
}

/// Steps whose doc comment begins `Walk n:`.
fn walk_steps() -> Vec<(u32, String)> {
    let mut steps = Vec::new();
    for source in sources(&["src"]) {
        for line in source.text.lines() {
            let line = line.trim_start();
            let comment = ["///", "//!", "//"].iter().find_map(|mark| line.strip_prefix(mark));
            let step = comment.and_then(|c| c.trim_start().strip_prefix("Walk ")?.split_once(':'));
            if let Some(number) = step.and_then(|(number, _)| number.parse().ok()) {
                steps.push((number, source.path.clone()));
            }
        }
    }
    steps.sort();
    steps
}

#[test]
fn every_step_of_the_walk_exists_once() {
    let steps = walk_steps();
    let numbers: Vec<u32> = steps.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>(), "the walk has steps 1 to 12, each once: {steps:#?}");
    // Where each step is at home; the map in lib.rs and ARCHITECTURE.md say the same.
    let homes = [
        "cli/",
        "engine/handle",
        "engine/session",
        "engine/source",
        "engine/plan",
        "engine/claims",
        "wire/",
        "engine/worker/source",
        "engine/worker/destination",
        "engine/commit",
        "disk/publish",
        "engine/destination/",
    ];
    for ((number, path), home) in steps.iter().zip(homes) {
        assert!(path.starts_with(&format!("src/{home}")), "step {number} stands in {path}, not in src/{home}");
    }
}

#[test]
fn every_bound_is_used() {
    let all = sources(&["src"]);
    let limits = all.iter().find(|s| s.path == "src/limits.rs").unwrap();
    let declared = limits.code.lines().filter_map(|line| {
        let name = line.strip_prefix("pub const ").or_else(|| line.strip_prefix("pub const fn "));
        let name = name.or_else(|| line.strip_prefix("pub fn "))?;
        Some(name.chars().take_while(|c| is_word(*c)).collect::<String>())
    });
    let mut count = 0;
    let mut unused = Vec::new();
    for name in declared {
        count += 1;
        let elsewhere = all.iter().any(|s| s.path != limits.path && has_word(&s.code, &name));
        // A bound that only bounds another one counts: its declaration is one mention, the relation a second.
        let here = limits.code.split(|c| !is_word(c)).filter(|word| *word == name).count();
        if !elsewhere && here < 2 {
            unused.push(name);
        }
    }
    assert!(count > 20, "limits.rs was not read");
    none(unused, "a bound that bounds nothing");
}

/// Rows of a document's table of promises: the tests behind each, as `path::name`.
fn promised_tests(readme: &str) -> Vec<String> {
    let (_, table) = readme.split_once("| Promise | Test |").expect("a table of promises");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let tests = rows.flat_map(|row| {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default().to_owned();
        let found: Vec<String> = cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(!found.is_empty(), "a promise without a test: {row}");
        found
    });
    tests.collect()
}

/// Whether `FILE::NAME` is a test function in that file.
fn is_test(reference: &str, all: &[Source]) -> bool {
    let Some((path, name)) = reference.rsplit_once("::") else { return false };
    let Some(source) = all.iter().find(|s| s.path == path) else { return false };
    let head = format!("fn {name}(");
    source.code.match_indices(&head).any(|(at, _)| {
        let above = &source.code[..at];
        // Between the attribute and the function only other attributes and `async` may stand.
        above.rfind("#[test]").is_some_and(|from| !above[from..].contains('{'))
            // A property is written inside `proptest!`, whose functions carry the attribute as well.
            || above.rfind("#[tokio::test").is_some_and(|from| !above[from..].contains('{'))
    })
}

#[test]
fn every_promise_has_its_test() {
    let all = sources(&["src", "tests"]);
    for document in ["README.md", "SAFETY.md"] {
        let text = std::fs::read_to_string(package().join(document)).unwrap();
        let tests = promised_tests(&text);
        assert!(tests.len() >= 5, "{document}: the table of promises was not read");
        let missing = tests.into_iter().filter(|t| !is_test(t, &all)).map(|t| format!("{document}: {t}")).collect();
        none(missing, "a promise names a test that does not exist");
    }
}

/// A test that no run takes by itself says why, and has a script that runs it.
#[test]
fn every_ignored_test_has_a_reason_and_a_script() {
    let script = std::fs::read_to_string(package().join("scripts/ignored.sh")).unwrap();
    let (mut found, mut wrong) = (0, Vec::new());
    for source in sources(&["src", "tests"]) {
        let mut lines = source.text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if !line.starts_with("#[ignore") {
                continue;
            }
            found += 1;
            let rest = lines.by_ref().find(|line| !line.starts_with("#["));
            let name =
                rest.and_then(|line| line.split_once("fn ")).map_or("", |(_, rest)| rest.split('(').next().unwrap());
            let named = script
                .lines()
                .any(|line| line.split_whitespace().next().is_some_and(|t| t.ends_with(&format!("::{name}"))));
            if !line.starts_with("#[ignore = \"") || !named {
                wrong.push(format!("{}: {name}: {line}", source.path));
            }
        }
    }
    assert!(found >= 5, "{found} found: ignored tests are not read");
    none(wrong, "an ignored test has no reason, or is not in scripts/ignored.sh");
}

/// README shows the commands that CI runs.
#[test]
fn ci_runs_what_readme_says() {
    let read = |name: &str| std::fs::read_to_string(package().join(name)).unwrap();
    let (readme, ci) = (read("README.md"), read(".ci/run"));
    for command in ["cargo test --release --features testing", "cargo run --release -- demo"] {
        assert!(readme.contains(command), "README does not name `{command}`");
        assert!(ci.contains(command), ".ci/run does not run `{command}`");
    }
}

#[test]
fn the_reader_of_source_text_reads_it_right() {
    let text = "let a = \"unsafe // \\\" x\"; // unsafe\nlet b = r#\"unsafe \" \"#; let c = 'u'; /* unsafe */ fn f<'a>() { b'\\'' }";
    let code = code_only(text);
    assert!(!has_word(&code, "unsafe"), "{code}");
    assert!(has_word(&code, "let") && code.contains("fn f<'a>()") && code.lines().count() == 2, "{code}");
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into(), code: code_only(text) };
    let named = |path: &str, text: &str| named_modules(&source(path, text)).into_iter().collect::<Vec<_>>();
    assert_eq!(
        named("src/disk/part.rs", "use crate::{grid::{Grid, Span}, net};\nuse super::super::wire::X;"),
        ["grid", "net", "wire"]
    );
    assert_eq!(named("src/disk/mod.rs", "use super::wire; use self::part;"), ["wire"]);
    assert_eq!(named("src/disk/part.rs", "use super::wire;"), Vec::<String>::new());
    let tests = [source("tests/a.rs", "#[test]\n#[should_panic]\nfn one() {}\nfn two() {}")];
    assert!(
        is_test("tests/a.rs::one", &tests)
            && !is_test("tests/a.rs::two", &tests)
            && !is_test("tests/b.rs::one", &tests)
    );
}
