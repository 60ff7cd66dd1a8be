//! Days.

use std::fmt;
use std::str::FromStr;

/// A day of the calendar. Written `2027-01-31`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Date {
    /// From 0 to 9999.
    pub year: u16,
    /// From 1.
    pub month: u8,
    /// From 1.
    pub day: u8,
}

/// A text that is no day.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no day; one looks like this: 2027-01-31")]
pub struct DateError(pub String);

impl Date {
    /// The day of a moment, in seconds since the beginning of 1970, in UTC.
    pub fn of_unix(seconds: u64) -> Self {
        let mut left = seconds / 86_400;
        let mut date = Self { year: 1970, month: 1, day: 1 };
        while left >= days_of(date.year) && date.year < 9999 {
            left = left.saturating_sub(days_of(date.year));
            date.year = date.year.saturating_add(1);
        }
        while left >= u64::from(date.month_length()) && date.month < 12 {
            left = left.saturating_sub(date.month_length().into());
            date.month = date.month.saturating_add(1);
        }
        date.day = u8::try_from(left.min(30)).unwrap_or(30).saturating_add(1).min(date.month_length());
        date
    }

    /// Days of its month.
    fn month_length(self) -> u8 {
        match self.month {
            2 if is_leap(self.year) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }
}

fn is_leap(year: u16) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u16) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl FromStr for Date {
    type Err = DateError;

    fn from_str(text: &str) -> Result<Self, DateError> {
        let wrong = || DateError(text.to_owned());
        let mut parts = text.split('-');
        let mut next = |length: usize| {
            let part = parts.next().filter(|part| part.len() == length && part.bytes().all(|b| b.is_ascii_digit()));
            part.and_then(|part| part.parse::<u16>().ok()).ok_or_else(wrong)
        };
        let (year, month, day) = (next(4)?, next(2)?, next(2)?);
        let small = |number: u16| u8::try_from(number).map_err(|_| wrong());
        let date = Self { year, month: small(month)?, day: small(day)? };
        let right = (1..=12).contains(&date.month) && (1..=date.month_length()).contains(&date.day);
        if right && parts.next().is_none() { Ok(date) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_as_they_are_written() {
        for (seconds, text) in [
            (0, "1970-01-01"),
            (86_399, "1970-01-01"),
            (86_400, "1970-01-02"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_798_675_199, "2026-12-30"),
            (1_798_761_600, "2027-01-01"),
        ] {
            assert_eq!(Date::of_unix(seconds).to_string(), text);
            assert_eq!(text.parse::<Date>().unwrap(), Date::of_unix(seconds), "{text}");
        }
        for text in ["", "2027", "2027-1-31", "2027-13-01", "2027-02-29", "2027-01-00", "2027-01-31-1", "+027-01-01"] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
        assert!("2028-02-29".parse::<Date>().unwrap() < "2028-03-01".parse().unwrap());
        let _ = Date::of_unix(u64::MAX);
    }
}
