//! Cron patterns against a reference that walks the calendar day by day and applies the rule of
//! crontab(5) to each: the two must agree on every pattern.

use jiff::{ToSpan, civil::date, tz::TimeZone};
use job::{
    Json,
    schedule::{IfLive, Malformed, Schedule},
};
use proptest::prelude::*;

/// A field as it is written, and which numbers it stands for.
#[derive(Clone, Debug)]
struct Field {
    text: String,
    numbers: Vec<i8>,
}

/// One field between two numbers: `*`, a number, a range or a list, with or without steps.
fn field(low: i8, high: i8) -> impl Strategy<Value = Field> {
    let star = Just(("*".to_owned(), low, high));
    let single = (low..=high).prop_map(|n| (n.to_string(), n, n));
    let range = (low..=high, low..=high).prop_map(|(one, other)| {
        let (from, to) = (one.min(other), one.max(other));
        (format!("{from}-{to}"), from, to)
    });
    let stepped = |(text, from, to): (String, i8, i8), step: i8| Field {
        text: format!("{text}/{step}"),
        numbers: (from..=to).step_by(usize::try_from(step).unwrap_or(1)).collect(),
    };
    let plain = |(text, from, to): (String, i8, i8)| Field { text, numbers: (from..=to).collect() };
    prop_oneof![
        3 => star.clone().prop_map(plain),
        2 => (star, 1..=high.max(2)).prop_map(move |(star, step)| stepped(star, step)),
        3 => single.clone().prop_map(plain),
        2 => (range.clone(), 1..=5i8).prop_map(move |(range, step)| stepped(range, step)),
        2 => (single, range).prop_map(move |(single, range)| {
            let (single, range) = (plain(single), plain(range));
            let numbers = [single.numbers, range.numbers].concat();
            Field { text: format!("{},{}", single.text, range.text), numbers }
        }),
    ]
}

/// The first minute after `start` that the fields match, within 41 years: the longest wait for a
/// given weekday on a 29th of February, but for a century that is no leap year.
fn reference(fields: &[Field; 5], start: jiff::civil::DateTime) -> Option<jiff::civil::DateTime> {
    let [minutes, hours, days, months, weekdays] = fields;
    let has = |field: &Field, number: i8| field.numbers.contains(&number);
    let mut day = start.date();
    for _ in 0..41 * 366 {
        let weekday = day.weekday().to_sunday_zero_offset();
        let by_day = has(days, day.day());
        let by_weekday = has(weekdays, weekday) || (weekday == 0 && has(weekdays, 7));
        let either_is_star = days.text.starts_with('*') || weekdays.text.starts_with('*');
        let matches = if either_is_star { by_day && by_weekday } else { by_day || by_weekday };
        if matches && has(months, day.month()) {
            for (hour, minute) in (0..24).flat_map(|hour| (0..60).map(move |m| (hour, m))) {
                let at = day.at(hour, minute, 0, 0);
                if at > start && has(hours, hour) && has(minutes, minute) {
                    return Some(at);
                }
            }
        }
        day = day.checked_add(1.day()).expect("the calendar goes on");
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn patterns_agree_with_the_reference(
        fields in (field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 7)),
        offset in 0..2_000i32,
    ) {
        let fields = <[Field; 5]>::from(fields);
        let cron = fields.each_ref().map(|field| field.text.as_str()).join(" ");
        let start = date(2026, 1, 1).at(0, 0, 0, 0).checked_add(offset.days()).expect("it is a day");
        let schedule = Schedule {
            cron: cron.as_str().into(),
            time_zone: "UTC".into(),
            batch_id: "b".into(),
            priority: 10,
            max_attempts: None,
            data: Json::default(),
            if_live: IfLive::Skip,
        };
        let at_ms = |at: jiff::civil::DateTime| {
            at.to_zoned(TimeZone::UTC).expect("UTC has every time").timestamp().as_millisecond()
        };
        match (schedule.next_after(at_ms(start)), reference(&fields, start)) {
            (Ok(found), Some(expected)) => prop_assert_eq!(found, at_ms(expected), "{}", cron),
            (Err(Malformed::Never(_)), None) => {}
            (found, expected) => prop_assert!(false, "{cron}: {found:?} and {expected:?}"),
        }
    }
}
