//! Numbers as people read them.

use super::data::FigureUnit;

/// Between groups of three digits, and between a number and its unit: narrow, and never broken.
const THIN: char = '\u{202f}';
/// A real minus sign.
const MINUS: char = '\u{2212}';

/// A figure in its unit.
pub(super) fn figure(x: f64, unit: FigureUnit) -> String {
    if !x.is_finite() {
        return if x.is_nan() { "not a number".into() } else { format!("{}∞", if x < 0.0 { "\u{2212}" } else { "" }) };
    }
    match unit {
        FigureUnit::Plain => significant(x, 5),
        FigureUnit::Percent => format!("{}{THIN}%", fixed(x * 100.0, 2)),
        FigureUnit::Count => grouped(x),
        FigureUnit::Bytes => bytes(x),
        FigureUnit::Milliseconds => format!("{}{THIN}ms", significant(x, 4)),
        FigureUnit::TokensPerSecond => format!("{}{THIN}tokens/s", grouped(x.round())),
    }
}

/// The change from `dense` to `pruned`, in words: percentage points for shares, percent of the dense value for the rest.
pub(super) fn change(dense: f64, pruned: f64, unit: FigureUnit) -> String {
    if unit == FigureUnit::Percent {
        return format!("{}{THIN}pp", signed((pruned - dense) * 100.0, 2));
    }
    if dense == 0.0 || !dense.is_finite() || !pruned.is_finite() {
        return "–".into();
    }
    format!("{}{THIN}%", signed((pruned / dense - 1.0) * 100.0, 1))
}

/// So many significant digits, without an exponent where the number is of everyday size.
pub(super) fn significant(x: f64, digits: usize) -> String {
    if x == 0.0 {
        return "0".into();
    }
    let size = x.abs().log10().floor();
    if !(-4.0..9.0).contains(&size) {
        return format!("{x:.*e}", digits.saturating_sub(1)).replace('-', "\u{2212}");
    }
    if x.fract() == 0.0 {
        return grouped(x);
    }
    let decimals = (digits as f64 - 1.0 - size).clamp(0.0, 12.0) as usize;
    fixed(x, decimals)
}

fn fixed(x: f64, decimals: usize) -> String {
    format!("{x:.decimals$}").replace('-', "\u{2212}")
}

fn signed(x: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", x.abs());
    if text.chars().all(|c| matches!(c, '0' | '.')) {
        return format!("±{text}");
    }
    format!("{}{text}", if x < 0.0 { MINUS } else { '+' })
}

/// A whole number in groups of three digits.
pub(super) fn grouped(x: f64) -> String {
    let digits = format!("{:.0}", x.abs());
    let mut out = String::new();
    if x < 0.0 && digits != "0" {
        out.push(MINUS);
    }
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 && digits.len() > 4 {
            out.push(THIN);
        }
        out.push(c);
    }
    out
}

fn bytes(x: f64) -> String {
    let (value, unit) = match x.abs() {
        a if a >= 1_073_741_824.0 => (x / 1_073_741_824.0, "GiB"),
        a if a >= 1_048_576.0 => (x / 1_048_576.0, "MiB"),
        a if a >= 1024.0 => (x / 1024.0, "KiB"),
        _ => return format!("{}{THIN}B", grouped(x)),
    };
    format!("{}{THIN}{unit}", fixed(value, 2))
}

/// Milliseconds as a person says them.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..=999 => format!("{ms}{THIN}ms"),
        1000..=59_999 => format!("{}{THIN}s", fixed(ms as f64 / 1000.0, 1)),
        60_000..=3_599_999 => format!("{}{THIN}min {}{THIN}s", ms / 60_000, ms % 60_000 / 1000),
        _ => format!("{}{THIN}h {}{THIN}min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        let plain = |x| figure(x, FigureUnit::Plain);
        assert_eq!(plain(4.793_67), "4.7937");
        assert_eq!(plain(0.000_012_3), "1.2300e\u{2212}5");
        assert_eq!(plain(f64::NAN), "not a number");
        assert_eq!(plain(f64::NEG_INFINITY), "\u{2212}∞");
        assert_eq!(figure(0.870_41, FigureUnit::Percent), "87.04\u{202f}%");
        assert_eq!(figure(1_234_567.0, FigureUnit::Count), "1\u{202f}234\u{202f}567");
        assert_eq!(figure(1234.0, FigureUnit::Count), "1234");
        assert_eq!(figure(3_145_728.0, FigureUnit::Bytes), "3.00\u{202f}MiB");
        assert_eq!(change(0.87, 0.86, FigureUnit::Percent), "\u{2212}1.00\u{202f}pp");
        assert_eq!(change(0.87, 0.87, FigureUnit::Percent), "±0.00\u{202f}pp");
        assert_eq!(change(200.0, 150.0, FigureUnit::Count), "\u{2212}25.0\u{202f}%");
        assert_eq!(change(0.0, 1.0, FigureUnit::Count), "–");
        assert_eq!(duration(61_500), "1\u{202f}min 1\u{202f}s");
    }
}
