//! Medians and spreads of a handful of ratios.
//!
//! Owns no data. Must never average: a single disturbed round would then move the figure.

use serde::Serialize;

/// The middle and the ends of some figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The middle one, or between the two middle ones.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

/// The spread of `figures`; `None` if there are none.
pub(crate) fn spread(mut figures: Vec<f64>) -> Option<Spread> {
    figures.retain(|figure| figure.is_finite());
    figures.sort_by(f64::total_cmp);
    let (min, max) = (*figures.first()?, *figures.last()?);
    let middle = figures.len() / 2;
    let lower = figures[(figures.len() - 1) / 2];
    Some(Spread { median: f64::midpoint(lower, figures[middle]), min, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        let of = |figures: &[f64]| spread(figures.to_vec()).map(|spread| spread.median);
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(of(&[f64::NAN]), None);
    }
}
