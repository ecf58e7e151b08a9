//! The grammar of Vixie cron (crontab(5)), checked before a pattern is searched.
//!
//! The search itself is croner's. It accepts more than Vixie does, and searches thousands of years
//! for a day that no calendar has: both are refused here, in time linear in the pattern.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};

/// A field of a pattern.
struct Field {
    name: &'static str,
    low: u8,
    high: u8,
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

const FIELDS: [Field; 5] = [
    Field { name: "minute", low: 0, high: 59, names: &[] },
    Field { name: "hour", low: 0, high: 23, names: &[] },
    Field { name: "day of month", low: 1, high: 31, names: &[] },
    Field { name: "month", low: 1, high: 12, names: &MONTHS },
    Field { name: "day of week", low: 0, high: 7, names: &DAYS },
];

/// The most days that each month has, from January on.
const DAYS_MAX: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Why a pattern is refused.
pub(super) enum Refused {
    /// It is not in the grammar.
    Malformed(String),
    /// No calendar has such a day.
    Never,
}

/// Parses a pattern of five fields.
pub(super) fn parse(pattern: &str) -> Result<Cron, Refused> {
    // Some keyboards write digits at full width.
    let pattern: String = pattern.chars().map(narrow).collect();
    let fields: Vec<&str> = pattern.split_ascii_whitespace().collect();
    let found = fields.len();
    let Ok(fields) = <[&str; 5]>::try_from(fields) else {
        return Err(Refused::Malformed(format!("it has {found} fields, not five")));
    };
    let mut sets = [0; 5];
    for ((set, field), text) in sets.iter_mut().zip(&FIELDS).zip(fields) {
        *set = field.parse(text).map_err(Refused::Malformed)?;
    }
    // A star, also one with a step, restricts nothing: then both day fields must match. Of two
    // restricted day fields one is enough.
    let both_days = fields[2].starts_with('*') || fields[4].starts_with('*');
    if both_days && !has_a_day(sets[2], sets[3]) {
        return Err(Refused::Never);
    }
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .dom_and_dow(both_days)
        .build();
    parser.parse(&fields.join(" ")).map_err(|error| Refused::Malformed(error.to_string()))
}

fn narrow(c: char) -> char {
    match c {
        '０'..='９' => char::from_digit(u32::from(c) - u32::from('０'), 10).unwrap_or(c),
        c => c,
    }
}

/// Whether one of the months has one of the days.
fn has_a_day(days: u64, months: u64) -> bool {
    (1..=12).zip(DAYS_MAX).any(|(month, last)| {
        let in_month = (1 << (last + 1)) - 1;
        months & (1 << month) != 0 && days & in_month != 0
    })
}

impl Field {
    /// The numbers that a field names, as bits.
    fn parse(&self, text: &str) -> Result<u64, String> {
        text.split(',').try_fold(0, |set, item| Ok(set | self.item(item)?))
    }

    fn item(&self, item: &str) -> Result<u64, String> {
        let (range, step) = match item.split_once('/') {
            None => (item, None),
            Some((range, step)) => (range, Some(step)),
        };
        let (low, high) = match range.split_once('-') {
            _ if range == "*" => (self.low, self.high),
            Some((low, high)) => (self.value(low)?, self.value(high)?),
            None => {
                let value = self.value(range)?;
                if step.is_some() {
                    return Err(self.error(item, "a step needs a range or *"));
                }
                (value, value)
            }
        };
        if low > high {
            return Err(self.error(item, "the range ends before it begins"));
        }
        let step = match step.map(number) {
            None => 1,
            Some(Some(step @ 1..)) => step,
            Some(_) => return Err(self.error(item, "the step must be a number from 1 on")),
        };
        Ok((low..=high).step_by(step).fold(0, |set, value| set | 1 << value))
    }

    fn value(&self, text: &str) -> Result<u8, String> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let value = match named {
            Some(index) => u8::try_from(index).ok().map(|index| index + self.low),
            None => number(text).and_then(|number| u8::try_from(number).ok()),
        };
        let value = value.filter(|value| (self.low..=self.high).contains(value));
        value.ok_or_else(|| {
            self.error(text, &format!("it must be a number from {} to {}", self.low, self.high))
        })
    }

    fn error(&self, text: &str, why: &str) -> String {
        format!("{text:?} as {}: {why}", self.name)
    }
}

/// A number in digits alone.
fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}
