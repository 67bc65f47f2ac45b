//! One word and one sentence for what was measured.

use tessera_core::entry::Exactness;
use tessera_engine::CostCurve;

use crate::record::{Arm, ClaimLine, Part, Row, Verdict, Word};
use crate::retention::{Point, Retention};
use crate::statistics::Interval;

/// Texts of this many times the perplexity of the plain run's are worth nothing.
const RUINED: f64 = 4.0;

/// A claimed acceptance counts as matched from this share of it on.
const MATCHED: f64 = 0.9;

/// The verdict on the method among `arms`:
/// - *not here* if the text breaks the promise, or there is no gain over the plain run or chance;
/// - *confirmed* if the speed reaches the claim, or, where no speed was claimed, beats the plain run
///   and does not lose to the baseline;
/// - *partly* otherwise.
pub fn of(exactness: Exactness, arms: &[Arm], claims: &[ClaimLine], curve: &CostCurve) -> Verdict {
    let overall = |part| arms.iter().find(|a| a.part == part).map(|a| &a.overall);
    let say = |word, reason| Verdict { word, reason };
    let (Some(method), Some(speed)) =
        (overall(Part::Method), overall(Part::Method).and_then(|m| m.speed))
    else {
        return say(Word::NotHere, "nothing was decoded, so there is no speed to judge".to_owned());
    };
    if exactness == Exactness::BitExact && method.text.same < method.text.texts {
        let (same, texts) = (method.text.same, method.text.texts);
        let reason = format!(
            "it promises the plain run's text and gave it in {same} of {texts} answers: \
             `tessera verify` names the first difference"
        );
        return say(Word::NotHere, reason);
    }
    let bound = bound(method, curve);
    if speed.low <= 1.0 {
        let reason = match speed.high < 1.0 {
            true => format!("it is slower than the plain run ({}): {bound}", times(speed)),
            false => format!("no gain over the plain run can be told ({}): {bound}", times(speed)),
        };
        return say(Word::NotHere, reason);
    }
    if let (Some(own), Some(plain)) = (method.text.perplexity, method.text.plain_perplexity)
        && own > plain * RUINED
    {
        let reason = format!(
            "{} of the plain run's speed, but the text is lost: perplexity {} under the plain model, \
             where the plain run's texts have {}",
            times(speed),
            figure(own),
            figure(plain)
        );
        return say(Word::NotHere, reason);
    }
    if let Some((word, reason)) = answers(method, overall(Part::Plain), overall(Part::Control)) {
        return say(word, format!("{}, {reason}", times(speed)));
    }
    if let Some(lost) = canvas(method, overall(Part::Control)) {
        let (word, reason) = lost;
        return say(word, format!("{}, {reason}", times(speed)));
    }
    if let Some(over) = method.over_control.filter(|_| method.text.distinct.is_none())
        && over.low <= 1.0
    {
        let reason = format!("it is no faster than guessing at random ({} its speed)", times(over));
        return say(Word::NotHere, reason);
    }
    let claimed = |unit: &str| claims.iter().find(|c| c.unit == unit && c.measured.is_some());
    match claimed("x") {
        Some(claim) if speed.high >= claim.claimed => {
            let reason = format!("{} where the paper has {}x", times(speed), figure(claim.claimed));
            say(Word::Confirmed, reason)
        }
        Some(claim) => {
            let steps = claims.iter().find(|c| c.unit != "x" && c.measured.is_some());
            let reason = match steps {
                Some(s) if method.per_pass.high >= s.claimed * MATCHED => format!(
                    "{} of {}x: acceptance is the paper's ({} tokens a pass, claimed {}), and \
                     here {bound}",
                    times(speed),
                    figure(claim.claimed),
                    figure(method.per_pass.median),
                    figure(s.claimed),
                ),
                Some(s) => format!(
                    "{} of {}x: acceptance is below the paper's ({} tokens a pass, claimed {}), \
                     and {bound}",
                    times(speed),
                    figure(claim.claimed),
                    figure(method.per_pass.median),
                    figure(s.claimed),
                ),
                None => format!("{} of {}x: {bound}", times(speed), figure(claim.claimed)),
            };
            say(Word::Partly, reason)
        }
        None => match method.over_rival {
            Some(over) if over.high < 1.0 => {
                let rival =
                    arms.iter().find(|a| a.part == Part::Rival).map_or("", |a| a.label.as_str());
                let reason = format!(
                    "{}, and slower than {rival} ({} its speed)",
                    times(speed),
                    times(over)
                );
                say(Word::Partly, reason)
            }
            _ => {
                let reason = format!("{}; no speed-up was claimed: {bound}", times(speed));
                say(Word::Confirmed, reason)
            }
        },
    }
}

/// Texts of this much more perplexity, or of so many fewer different pairs of tokens, are worse than the
/// plain run's.
pub(crate) const WORSE: f64 = 1.05;

/// Whether the plain run is right in too few of the answers asked for a loss to show.
pub(crate) fn is_too_seldom(plain: usize, asked: usize) -> bool {
    plain * 4 < asked
}

/// What is wrong with the answers of a method, where each prompt has one right one.
fn answers(method: &Row, plain: Option<&Row>, control: Option<&Row>) -> Option<(Word, String)> {
    let (own, asked) = (method.text.right?, method.text.texts);
    let plain = plain?.text.right?;
    if is_too_seldom(plain, asked) {
        let what = format!(
            "but the plain run has {plain} of {asked} answers right: too few for a loss to show"
        );
        return Some((Word::NotHere, what));
    }
    if let Some(chance) = control.and_then(|c| c.text.right)
        && own <= chance
        && chance < plain
    {
        let what = format!(
            "but {own} of {asked} answers are right, {chance} in a random order with as many passes, and {plain} \
             of the plain run's"
        );
        return Some((Word::NotHere, what));
    }
    ((own as f64) * WORSE < plain as f64).then(|| {
        (
            Word::Partly,
            format!("with {own} of {asked} answers right where the plain run has {plain}"),
        )
    })
}

/// What is wrong with the texts of a method that fills masks, if a judge could tell.
fn canvas(method: &Row, control: Option<&Row>) -> Option<(Word, String)> {
    let text = &method.text;
    let (own, plain) = (text.perplexity?, text.plain_perplexity?);
    let (distinct, before) = (text.distinct?, text.plain_distinct?);
    if let Some(chance) = control.and_then(|c| c.text.perplexity)
        && own >= chance
    {
        let what = "but the text is no better than in a random order with as many passes";
        let reason = format!("{what}: perplexity {} and {}", figure(own), figure(chance));
        return Some((Word::NotHere, reason));
    }
    (own > plain * WORSE || distinct * WORSE < before).then(|| {
        let reason = format!(
            "at a worse text: perplexity {} where the plain canvas has {}, distinct-2 {} and {}",
            figure(own),
            figure(plain),
            figure(distinct),
            figure(before)
        );
        (Word::Partly, reason)
    })
}

/// A loss of answers up to this many points of 100 is what papers call nearly none.
const SMALL_LOSS: f64 = 5.0;

/// The verdict on a method that forgets:
/// - *not here* if it answers no more than what forgets at random, or if the plain run answers too
///   little for anything to be lost;
/// - *confirmed* if it loses at most five points of the plain run's answers and is not
///   behind the baseline;
/// - *partly* otherwise.
pub fn of_retention(retention: &Retention, rival: Option<&str>) -> Verdict {
    let say = |word, reason| Verdict { word, reason };
    let own = retention.points.iter().find(|p| p.part == Part::Method);
    let plain = retention.points.first().and_then(Point::all);
    let (Some(point), Some(plain)) = (own, plain) else {
        return say(Word::NotHere, "nothing was asked, so there is nothing to judge".to_owned());
    };
    let Some(answers) = point.all() else {
        return say(Word::NotHere, "nothing was asked, so there is nothing to judge".to_owned());
    };
    let held = format!(
        "{} of {} answers with {}, where the plain run has {}",
        answers.right,
        answers.asked,
        point.memory(),
        plain.right
    );
    if is_too_seldom(plain.right, plain.asked) {
        let reason = format!("the model answers too few questions for a loss to show: {held}");
        return say(Word::NotHere, reason);
    }
    let speed = point.speed.map_or_else(String::new, |s| format!("; decoding {}", times(s)));
    if let Some(over) = answers.over_control
        && over.low <= 0.0
    {
        let reason = format!("{held}: no more than forgetting at random ({}){speed}", points(over));
        return say(Word::NotHere, reason);
    }
    if let Some(over) = answers.over_rival
        && over.high < 0.0
    {
        let rival = rival.unwrap_or("the baseline");
        return say(Word::Partly, format!("{held}: behind {rival} ({}){speed}", points(over)));
    }
    let word = match answers.over_plain.median >= -SMALL_LOSS {
        true => Word::Confirmed,
        false => Word::Partly,
    };
    say(word, format!("{held} ({}){speed}", points(answers.over_plain)))
}

fn points(i: Interval) -> String {
    format!("{:+.0} points [{:+.0}, {:+.0}]", i.median, i.low, i.high)
}

/// What bounds the gain: tokens per pass against the cost of a pass.
fn bound(method: &Row, curve: &CostCurve) -> String {
    let (counts, passes) = (&method.counts, method.counts.all_passes().max(1) as f64);
    if counts.questions + counts.masks > 0 {
        let tokens = counts.drawn.max(1) as f64;
        return format!(
            "{} questions and {} masks a token are asked of the constraint",
            figure(counts.questions as f64 / tokens),
            figure(counts.masks as f64 / tokens)
        );
    }
    if method.text.distinct.is_some() {
        return format!(
            "{} tokens a pass and {} rows a token",
            figure(counts.per_pass()),
            figure(counts.rows() as f64 / counts.committed.max(1) as f64)
        );
    }
    let rows = 1.0 + counts.guesses_per_pass();
    format!(
        "{} tokens a pass at {} rows, and passes that cost {} of one row on this machine, predict \
         {}x",
        figure(counts.per_pass()),
        figure(rows),
        figure(counts.cost(curve) / passes),
        figure(method.predicted),
    )
}

fn times(i: Interval) -> String {
    format!("{}x [{}, {}]", figure(i.median), figure(i.low), figure(i.high))
}

/// Two decimals, one from ten on.
pub fn figure(value: f64) -> String {
    if value.abs() < 9.995 { format!("{value:.2}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::Answers;
    use crate::samples;

    fn judged(change: impl Fn(&mut crate::record::Record)) -> Verdict {
        let mut record = samples::record();
        change(&mut record);
        of(Exactness::BitExact, &record.arms, &record.claims, &record.curve)
    }

    fn with_speed(low: f64, median: f64, high: f64) -> Verdict {
        judged(|r| r.arms[2].overall.speed = Some(Interval { median, low, high, count: 9 }))
    }

    #[test]
    fn each_case_has_its_word_and_its_reason() {
        insta::assert_snapshot!(with_speed(1.9, 2.0, 2.1).reason, @"2.00x [1.90, 2.10] where the paper has 2.00x");
        insta::assert_snapshot!(with_speed(1.2, 1.3, 1.4).reason, @"1.30x [1.20, 1.40] of 2.00x: acceptance is the paper's (2.44 tokens a pass, claimed 2.50), and here 2.44 tokens a pass at 4.00 rows, and passes that cost 1.30 of one row on this machine, predict 1.88x");
        insta::assert_snapshot!(with_speed(0.8, 0.9, 0.95).reason, @"it is slower than the plain run (0.90x [0.80, 0.95]): 2.44 tokens a pass at 4.00 rows, and passes that cost 1.30 of one row on this machine, predict 1.88x");
        insta::assert_snapshot!(with_speed(0.9, 1.0, 1.1).reason, @"no gain over the plain run can be told (1.00x [0.90, 1.10]): 2.44 tokens a pass at 4.00 rows, and passes that cost 1.30 of one row on this machine, predict 1.88x");
        let words = [
            with_speed(1.9, 2.0, 2.1).word,
            with_speed(1.2, 1.3, 1.4).word,
            with_speed(0.8, 0.9, 0.95).word,
            with_speed(0.9, 1.0, 1.1).word,
        ];
        assert_eq!(words, [Word::Confirmed, Word::Partly, Word::NotHere, Word::NotHere]);
    }

    #[test]
    fn chance_and_a_simpler_method_are_not_forgotten() {
        let chance = judged(|r| {
            r.arms[2].overall.over_control =
                Some(Interval { median: 1.0, low: 0.9, high: 1.1, count: 9 });
        });
        assert_eq!(chance.word, Word::NotHere);
        assert!(chance.reason.contains("at random"), "{}", chance.reason);
        let beaten = judged(|r| {
            r.claims.clear();
            r.arms[2].overall.over_rival =
                Some(Interval { median: 0.8, low: 0.7, high: 0.9, count: 9 });
        });
        assert_eq!(beaten.word, Word::Partly);
        assert!(beaten.reason.contains("slower than prompt-lookup"), "{}", beaten.reason);
        let alone = judged(|r| r.claims.clear());
        assert_eq!(alone.word, Word::Confirmed);
    }

    #[test]
    fn speed_is_worth_nothing_without_the_text() {
        let verdict = judged(|r| {
            r.arms[2].overall.text.perplexity = Some(127.8);
            r.arms[2].overall.text.plain_perplexity = Some(1.79);
        });
        assert_eq!(verdict.word, Word::NotHere);
        assert!(verdict.reason.contains("perplexity 127.8"), "{}", verdict.reason);
    }

    #[test]
    fn right_answers_go_before_what_a_judge_says() {
        let with = |own: usize, plain: usize, chance: usize| {
            judged(|r| {
                for arm in &mut r.arms {
                    let right = match arm.part {
                        Part::Plain => plain,
                        Part::Control => chance,
                        _ => own,
                    };
                    arm.overall.text.right = Some(right);
                    arm.overall.text.texts = 20;
                    arm.overall.text.same = 20;
                }
            })
        };
        for (own, plain, chance, word, said) in [
            (20, 20, 3, Word::Partly, "acceptance is the paper's"),
            (18, 20, 3, Word::Partly, "with 18 of 20 answers right where the plain run has 20"),
            (3, 20, 3, Word::NotHere, "3 in a random order with as many passes"),
            (4, 4, 3, Word::NotHere, "too few for a loss to show"),
        ] {
            let verdict = with(own, plain, chance);
            assert_eq!(verdict.word, word, "{}", verdict.reason);
            assert!(verdict.reason.contains(said), "{}", verdict.reason);
        }
    }

    fn known(right: usize, control: Option<f64>, rival: Option<f64>) -> Verdict {
        let mean = |m: f64| Interval { median: m, low: m - 4.0, high: m + 4.0, count: 50 };
        let point = |part, right: usize, control: Option<f64>, rival: Option<f64>| Point {
            part,
            label: "keeper".into(),
            methods: serde_json::json!([]),
            value: serde_json::json!(64),
            tasks: vec![Answers {
                task: "all".into(),
                asked: 50,
                right,
                over_plain: mean(2.0 * (right as f64 - 45.0)),
                over_control: control.map(mean),
                over_rival: rival.map(mean),
            }],
            kept: 0.125,
            read: 1.0,
            cache_bytes: 1000,
            perplexity: 9.0,
            speed: None,
            prefill_speed: None,
        };
        let plain = point(Part::Plain, if right > 45 { 5 } else { 45 }, None, None);
        let points = vec![plain, point(Part::Method, right, control, rival)];
        let retention = Retention { length: 1000, texts: 4, setting: "budget".into(), points };
        of_retention(&retention, Some("snapkv"))
    }

    #[test]
    fn what_is_still_known_has_its_word() {
        assert_eq!(known(44, Some(30.0), Some(1.0)).word, Word::Confirmed);
        assert_eq!(known(30, Some(30.0), Some(1.0)).word, Word::Partly);
        let behind = known(44, Some(30.0), Some(-9.0));
        assert_eq!(behind.word, Word::Partly);
        assert!(behind.reason.contains("behind snapkv"), "{}", behind.reason);
        let chance = known(30, Some(2.0), None);
        assert_eq!(chance.word, Word::NotHere);
        assert!(chance.reason.contains("at random"), "{}", chance.reason);
        assert!(known(46, Some(9.0), None).reason.contains("too few questions"));
    }

    #[test]
    fn acceptance_below_the_claim_is_named() {
        let verdict = judged(|r| {
            r.claims[1].claimed = 9.0;
            r.arms[2].overall.speed = Some(Interval { median: 1.3, low: 1.2, high: 1.4, count: 9 });
        });
        assert!(verdict.reason.contains("below the paper's"), "{}", verdict.reason);
    }
}
