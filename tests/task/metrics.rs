//! Metrics of texts, against sacreBLEU and against cases computed by hand.

use std::path::Path;

use llamaprobe::task::metrics::{Metric, interval};
use llamaprobe::task::{Example, Task};
use serde_json::Value;

const WORDS: &str = "the a of in was is and red cat dog house river 1,000 3.5 2008-09 10 don't U.S. naïve kůň žluťoučký \
                     e-mail (b) &quot;so&quot; &amp; &lt;tag&gt; $5 50% a/b x=y :-) <skipped> well-known end. what? \
                     “yes” 7-3 , . ; -";
const ENDS: [&str; 11] = ["", "", "", "", ".", " .", "!", ",", "\u{3000}", " \u{a0}x", "\u{2028}y"];

/// The generator of `golden/text_metrics.py`.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    fn word(&mut self) -> &'static str {
        let words: Vec<&str> = WORDS.split(' ').collect();
        words[self.below(words.len())]
    }

    fn sentence(&mut self, words: usize) -> String {
        let text = (0..words).map(|_| self.word()).collect::<Vec<_>>().join(" ");
        text + ENDS[self.below(ENDS.len())]
    }

    fn changed(&mut self, text: &str) -> String {
        let mut words: Vec<&str> = text.split(' ').collect();
        for _ in 0..self.below(4) {
            let i = self.below(words.len());
            match self.below(2) {
                0 => words.insert(i, self.word()),
                _ => words[i] = self.word(),
            }
        }
        words.join(" ")
    }
}

fn pairs() -> Vec<(String, Example)> {
    let mut rng = Random(5);
    let pair = |i: usize| {
        let words = 1 + rng.below(10);
        let reference = rng.sentence(words);
        let output = if i.is_multiple_of(7) {
            let words = 1 + rng.below(8);
            rng.sentence(words)
        } else {
            rng.changed(&reference)
        };
        let others = if i.is_multiple_of(2) { 0 } else { rng.below(3) };
        let mut example = Example::new("", &reference);
        example.references = (0..others).map(|_| rng.changed(&reference)).collect();
        (output, example)
    };
    (0..1000).map(pair).collect()
}

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text_metrics.json");
    serde_json::from_slice(&std::fs::read(path).expect("the golden file")).expect("JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// Largest difference of a score of sacreBLEU that the golden file has with four digits.
const ROUNDED: f64 = 5.1e-5;
/// That of scores up to 100 that it has in full: two roundings. What is measured is 0.
const EXACT: f64 = 3e-14;

/// What is judged, with a mistake.
type Mistake = fn(&mut (String, Example));

/// The largest difference from sacreBLEU's scores of the random pairs one by one, and of all.
fn from_sacrebleu(golden: &Value, m: usize, metric: Metric, mistake: Mistake) -> [f64; 2] {
    let mut pairs = pairs();
    pairs.iter_mut().for_each(mistake);
    let judged: Vec<Vec<f64>> = pairs.iter().map(|(output, example)| metric.judge(output, example)).collect();
    let apart = |(statistics, theirs): (&Vec<f64>, &Value)| (metric.score(statistics) - number(&theirs[m])).abs();
    let each = judged.iter().zip(golden["random"].as_array().expect("scores")).map(apart);
    [each.fold(0.0, f64::max), (metric.corpus(&judged) - number(&golden["corpus"][m])).abs()]
}

#[test]
fn bleu_and_chrf_are_sacrebleus() {
    let (golden, pairs) = (golden(), pairs());
    assert_eq!(golden["random"].as_array().map(Vec::len), Some(pairs.len()));
    for (m, metric) in [Metric::Bleu, Metric::ChrF].into_iter().enumerate() {
        let [each, all] = from_sacrebleu(&golden, m, metric, |_| ());
        println!(
            "{metric:?}: pairs within {each:.1e}, limit {ROUNDED:.1e}; corpus within {all:.1e}, limit {EXACT:.0e}"
        );
        assert!(each <= ROUNDED && all <= EXACT, "{metric:?}: {each:.1e} of one, {all:.1e} of all");
        for case in golden["special"].as_array().expect("cases") {
            let text = |value: &Value| value.as_str().expect("a text").to_string();
            let mut references: Vec<String> = case["references"].as_array().expect("texts").iter().map(text).collect();
            let mut example = Example::new("", references.remove(0));
            example.references = references;
            let ours = metric.score(&metric.judge(&text(&case["output"]), &example));
            let theirs = number(&case["scores"][m]);
            assert!((ours - theirs).abs() <= ROUNDED, "{metric:?} of {case}: {ours}");
        }
    }
    let signatures = &golden["signatures"];
    let several = || pairs.iter().map(|(_, example)| example.gold().count());
    assert_eq!(signatures[0], Metric::Bleu.signature(several()));
    assert_eq!(signatures[1], Metric::ChrF.signature(several()));
    assert_eq!(signatures[2], Metric::Bleu.signature([1, 1]));
}

/// The largest difference from the scores of SQuAD's and rouge_score's own code, of the random pairs.
fn from_overlap(golden: &Value, m: usize, metric: Metric, mistake: Mistake) -> f64 {
    let mut pairs = pairs();
    pairs.iter_mut().for_each(mistake);
    let apart = |((output, example), theirs): (&(String, Example), &Value)| {
        (metric.score(&metric.judge(output, example)) - 100.0 * number(&theirs[m])).abs()
    };
    pairs.iter().zip(golden["random"].as_array().expect("scores")).map(apart).fold(0.0, f64::max)
}

fn overlap_golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/overlap_metrics.json");
    serde_json::from_slice(&std::fs::read(path).expect("the golden file")).expect("JSON")
}

#[test]
fn f1_is_squads_and_rouge_l_that_of_rouge_score() {
    let golden = overlap_golden();
    for (m, metric) in [Metric::F1, Metric::RougeL].into_iter().enumerate() {
        let far = from_overlap(&golden, m, metric, |_| ());
        println!("{metric:?}: pairs within {far:.1e}, limit {EXACT:.0e}");
        assert!(far <= EXACT, "{metric:?}: {far:.1e}");
        for case in golden["special"].as_array().expect("cases") {
            let text = |key: &str| case[key].as_str().expect("a text");
            let ours = metric.score(&metric.judge(text("output"), &Example::new("", text("reference"))));
            assert!((ours - 100.0 * number(&case["scores"][m])).abs() <= EXACT, "{metric:?} of {case}: {ours}");
        }
    }
    assert_eq!(golden["random"].as_array().map(Vec::len), Some(1000));
}

#[test]
fn metric_limits_see_small_mistakes() {
    let (sacrebleu, overlap) = (golden(), overlap_golden());
    let mistakes: [(&str, Mistake); 3] = [
        ("the last reference left out", |(_, example)| drop(example.references.pop())),
        ("full stops left out", |(output, _)| *output = output.trim_end_matches([' ', '.']).to_owned()),
        ("letters without accents", |(output, _)| *output = output.replace('ï', "i")),
    ];
    for (mistake, change) in mistakes {
        for (m, metric) in [Metric::Bleu, Metric::ChrF].into_iter().enumerate() {
            let [each, all] = from_sacrebleu(&sacrebleu, m, metric, change);
            println!("{metric:?}, {mistake}: {each:.1e} of one, {all:.1e} of all");
            assert!(each > ROUNDED && all > EXACT, "{metric:?}, {mistake}: {each:.1e} of one, {all:.1e} of all");
        }
        for (m, metric) in [Metric::F1, Metric::RougeL].into_iter().enumerate() {
            let far = from_overlap(&overlap, m, metric, change);
            println!("{metric:?}, {mistake}: {far:.1e}");
            // Neither counts punctuation.
            assert_eq!(far > EXACT, !mistake.contains("full stops"), "{metric:?}, {mistake}: {far:.1e}");
        }
    }
}

#[test]
fn nothing_scores_nothing() {
    for metric in [
        Metric::Accuracy,
        Metric::Exact,
        Metric::Bleu,
        Metric::ChrF,
        Metric::F1,
        Metric::RougeL,
        Metric::Blec,
        Metric::Sql,
        Metric::Parse,
    ] {
        assert_eq!(metric.corpus(&[]), 0.0, "{metric:?}");
    }
}

fn hit(metric: Metric, right: &str, output: &str) -> bool {
    metric.score(&metric.judge(output, &Example::new("", right))) == 100.0
}

#[test]
fn sql_matches_but_for_what_sql_does_not_tell_apart() {
    let same = |a: &str, b: &str| hit(Metric::Sql, a, b);
    assert!(same("SELECT count(*) FROM singer", "select COUNT ( * )  from Singer ;"));
    assert!(same("SELECT a FROM t WHERE b  =  'X y'", "select a from t where b=\"X y\""));
    assert!(same("SELECT a FROM t WHERE b != 1 AND c >= 2", "select a from t where b ! = 1 and c > = 2"));
    assert!(same(
        "SELECT T1.name FROM singer AS T1 JOIN concert AS T2 ON T1.id = T2.singer",
        "SELECT singer.name FROM singer JOIN concert ON singer.id = concert.singer"
    ));
    assert!(same(
        "SELECT T1.a FROM x AS T1, y AS T2 WHERE T1.b = T2.b",
        "SELECT T2.a FROM x AS T2, y AS T1 WHERE T2.b = T1.b"
    ));
    assert!(!same("SELECT a FROM t WHERE b = 'X'", "SELECT a FROM t WHERE b = 'x'"), "values keep their case");
    assert!(!same("SELECT a FROM t WHERE b = 'as t1'", "SELECT a FROM t WHERE b = ''"));
    assert!(!same("SELECT a, b FROM t", "SELECT b, a FROM t"), "nothing is reordered");
    assert!(!same("SELECT a FROM t", "SELECT a FROM t LIMIT 1"));
    assert!(!same("SELECT a FROM t", ""));
    assert!(same("SELECT count(*) AS c FROM t", "SELECT count ( * ) as C FROM t"));
    assert!(!same("SELECT count(*) AS c FROM t", "SELECT count(*) FROM t"));
}

#[test]
fn parses_match_as_trees() {
    let right = "[IN:CREATE_CALL [SL:CONTACT Nicholas ] [SL:CONTACT Natasha ] ]";
    let same = |output: &str| hit(Metric::Parse, right, output);
    assert!(same(right));
    assert!(same("  [IN:CREATE_CALL[SL:CONTACT  Nicholas][SL:CONTACT Natasha]]\n"));
    for wrong in [
        "[IN:CREATE_CALL [SL:CONTACT Natasha ] [SL:CONTACT Nicholas ] ]",
        "[IN:CREATE_CALL [SL:CONTACT nicholas ] [SL:CONTACT Natasha ] ]",
        "[IN:CREATE_CALL [SL:CONTACT Nicholas [SL:CONTACT Natasha ] ] ]",
        "[IN:CREATE_CALL [SL:CONTACT Nicholas ] [SL:CONTACT Natasha ]",
        "[IN:CREATE_CALL [SL:CONTACT Nicholas ] [SL:CONTACT Natasha ] ] ]",
        "[IN:CREATE_CALL [SL:CONTACT Nicholas ] [SL:CONTACT Natasha ] ] x",
        "",
        "]",
        "[ ]",
        "words",
    ] {
        assert!(!same(wrong), "{wrong}");
    }
}

/// What BLEC finds, as computed by hand from its published rules.
#[test]
fn blec_finds_what_its_rules_find() {
    let consistent = |logic: &str, output: &str, truth: &str| {
        let example = Example { logical_form: Some(logic.to_string()), ..Example::new("", truth) };
        Metric::Blec.score(&Metric::Blec.judge(output, &example)) == 100.0
    };
    let count = "eq { count { filter_eq { all_rows ; length ; 60 mins } } ; 12 } = true";
    assert!(consistent(count, "there were twelve or 12 of sixty minutes .", "there were 12 ."), "digits");
    assert!(!consistent(count, "there were some of sixty minutes .", "there were 12 ."), "12 is missing");
    assert!(
        consistent(count, "there were some of sixty minutes .", "there were twelve ."),
        "and in the right text too"
    );
    let third = "eq { hop { nth_argmax { all_rows ; population ; 3 } ; town } ; york } = true";
    assert!(consistent(third, "york has the third highest population .", "york is third ."));
    assert!(consistent(third, "york is among the three largest .", "york is third ."), "a keyword and a word for 3");
    assert!(!consistent(third, "york has the highest population .", "york is third ."), "3 is missing");
    assert!(!consistent(third, "york is the third town .", "york is third ."), "no keyword of a maximum");
    let only = "only { filter_eq { all_rows ; nat ; slovakia } } = true";
    assert!(consistent(only, "only one is slovakian .", ""));
    assert!(!consistent(only, "some are slovakian .", ""));
    assert!(!consistent(only, "only one is not slovakian .", ""), "no operator is a negation");
    assert!(!consistent(only, "another one is slovakian .", ""), "nor are its letters");
    let most = "most_greater { all_rows ; crowd ; 10000 } = true";
    assert!(
        consistent(most, "most crowds are of 10,000 .", "10000"),
        "a comma between thousands; one keyword is enough"
    );
    assert!(consistent(most, "crowds were over 10000 .", "10000"));
    assert!(!consistent(most, "crowds were of 10,000 .", "10000"));
    let sum = "round_eq { sum { all_rows ; points } ; 8 } = true";
    assert!(consistent(sum, "a total of nine points .", "8 points ."), "as the published table spells 8");
    assert!(!consistent(sum, "a total of eight points .", "8 points ."));
    assert!(consistent("eq { avg { all_rows ; votes } ; 1 } = true", "the mean was low .", "1"), "1 is always there");
}

#[test]
fn the_right_output_scores_a_hundred() {
    let example =
        |meaning: Option<&str>| Example { logical_form: meaning.map(str::to_string), ..Example::new("in", "out") };
    for task in Task::all() {
        let metric = task.metric();
        let right = match task.name() {
            "mtop" => Example::new("", "[IN:GET_WEATHER ]"),
            "logic2text" => example(Some("eq { hop { all_rows ; x } ; y } = true")),
            "totto" | "dart" => Example::new("", "one two three four"),
            _ => example(None),
        };
        let score = metric.score(&metric.judge(&right.output, &right));
        assert!((score - 100.0).abs() < 1e-9, "{task}: {score}");
    }
}

#[test]
fn intervals_cover_the_score_and_shrink() {
    let hits = |n: usize| (0..n).map(|i| vec![f64::from(u8::from(i % 4 == 0)), 1.0]).collect::<Vec<_>>();
    let width = |n: usize| {
        let found = interval(Metric::Exact, &[hits(n)], 1000, 7).expect("an interval");
        assert!(found.low < 25.0 && 25.0 < found.high, "{found:?}");
        found.high - found.low
    };
    // 1.96 * 2 * sqrt(p (1 - p) / n) of a normal approximation, in percent.
    assert!((width(400) - 8.49).abs() < 1.2, "{}", width(400));
    assert!(width(1600) < 0.65 * width(400));
    assert_eq!(interval(Metric::Exact, &[hits(40)], 200, 1), interval(Metric::Exact, &[hits(40)], 200, 1));
    let none: Vec<Vec<f64>> = vec![vec![0.0, 1.0]; 400];
    let mean = interval(Metric::Exact, &[hits(400), none], 1000, 7).expect("an interval");
    assert!((mean.high - mean.low - width(400) / 2.0).abs() < 1e-9, "of the mean over runs: {mean:?}");
    assert_ne!(interval(Metric::Exact, &[hits(40)], 200, 1), interval(Metric::Exact, &[hits(40)], 200, 2));
    assert_eq!(interval(Metric::Exact, &[vec![]], 100, 0), None);
}
