//! A [`Look`] on a terminal.
//!
//! Owns the layout; draws what it is given and asks nothing. `cli::top` calls [`draw`].

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};

use super::Look;

/// What is on the screen beside the numbers.
#[derive(Clone, Debug)]
pub(crate) struct Around<'a> {
    /// Where the numbers come from.
    pub(crate) source: &'a str,
    /// Why they are old, if they are.
    pub(crate) trouble: Option<&'a str>,
    pub(crate) paused: bool,
    pub(crate) colours: bool,
}

/// Lines of the table of traffic with its frame.
const TRAFFIC_LINES: u16 = 5;
/// Columns of the drops beside the links.
const DROPS_COLUMNS: u16 = 36;

/// Draws `look`, or that there is none yet.
pub(crate) fn draw(frame: &mut Frame<'_>, look: Option<&Look>, around: &Around<'_>) {
    let [head, traffic, rest, foot] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(TRAFFIC_LINES),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [links, drops] =
        Layout::horizontal([Constraint::Min(30), Constraint::Length(DROPS_COLUMNS)])
            .spacing(2)
            .areas(rest);
    let paint = Paint { colours: around.colours };
    frame.render_widget(Paragraph::new(heading(look, around, paint)), head);
    if let Some(look) = look {
        draw_traffic(frame, traffic, look, paint);
        draw_links(frame, links, look, paint);
        draw_drops(frame, drops, look, paint);
    }
    let keys = if around.paused { "paused   p go on   q quit" } else { "p pause   q quit" };
    frame.render_widget(Paragraph::new(keys).style(paint.dim()), foot);
}

/// Styles, or none where colours are not wanted.
#[derive(Clone, Copy)]
struct Paint {
    colours: bool,
}

impl Paint {
    fn dim(self) -> Style {
        Style::default().add_modifier(Modifier::DIM)
    }

    fn head(self) -> Style {
        Style::default().add_modifier(Modifier::BOLD)
    }

    fn of(self, colour: Color) -> Style {
        if self.colours { Style::default().fg(colour) } else { Style::default() }
    }
}

fn heading<'a>(look: Option<&Look>, around: &Around<'a>, paint: Paint) -> Vec<Line<'a>> {
    let mut first = vec![Span::styled(around.source, paint.head())];
    if let Some(why) = around.trouble {
        first.push(Span::styled(format!("   {why}"), paint.of(Color::Red)));
    }
    let Some(look) = look else { return vec![Line::from(first), "asking".into()] };
    first.push(Span::styled(format!("   {} {}", look.version, look.io), paint.dim()));
    let steered = match &look.steered {
        None => Span::styled("not steered", paint.dim()),
        Some(it) if it.connected => {
            Span::styled(format!("steered, revision {}", it.revision), paint.of(Color::Green))
        }
        Some(it) => Span::styled(
            format!("control is away, relaying by revision {}", it.revision),
            paint.of(Color::Yellow),
        ),
    };
    let second = vec![
        format!("{} sessions ({} home)", look.sessions, look.home_sessions).into(),
        format!("   +{}/s", number(look.sessions_opened_per_s)).into(),
        format!("   {} handshakes", look.handshakes_open).into(),
        format!("   {} links", look.links).into(),
        format!("   {} XDP flows", look.xdp_flows).into(),
        format!("   CPU {:.2}", look.cpus_used).into(),
        format!("   {} resident", quantity(look.resident_bytes as f64, "B")).into(),
    ];
    vec![Line::from(first), Line::from(second), Line::from(steered)]
}

fn table<'a>(
    title: &'a str,
    headings: &[&'a str],
    rows: Vec<Vec<String>>,
    paint: Paint,
    first: Constraint,
) -> Table<'a> {
    let right = |text: String| Cell::from(Line::from(text).alignment(Alignment::Right));
    let cells = |row: Vec<String>| {
        let cells = row.into_iter().enumerate();
        Row::new(cells.map(|(at, text)| if at == 0 { Cell::from(text) } else { right(text) }))
    };
    let head = cells(headings.iter().map(|it| (*it).to_owned()).collect()).style(paint.dim());
    let widths = std::iter::once(first).chain(vec![Constraint::Length(12); headings.len() - 1]);
    Table::new(rows.into_iter().map(cells), widths)
        .header(head)
        .block(Block::default().borders(Borders::TOP).title(title).border_style(paint.dim()))
}

fn draw_traffic(frame: &mut Frame<'_>, area: Rect, look: &Look, paint: Paint) {
    let rows = look.traffic.iter().map(|it| {
        vec![
            it.proto.to_owned(),
            number(it.received_per_s),
            number(it.forwarded_per_s),
            number(it.answered_per_s),
            number(it.by_xdp_per_s),
            quantity(it.bytes_per_s * 8.0, "bit"),
        ]
    });
    let headings = ["each second", "received", "forwarded", "answered", "by XDP", "payload"];
    let rows = rows.collect();
    frame.render_widget(table("", &headings, rows, paint, Constraint::Length(12)), area);
}

fn draw_links(frame: &mut Frame<'_>, area: Rect, look: &Look, paint: Paint) {
    let rows = look.busiest.iter().take(area.height.into()).map(|it| {
        vec![it.link.clone(), number(it.packets_per_s), quantity(it.bytes_per_s * 8.0, "bit")]
    });
    let headings = ["link", "packets", "payload"];
    let rows = rows.collect();
    let table = table("busiest links", &headings, rows, paint, Constraint::Min(10));
    frame.render_widget(table, area);
}

fn draw_drops(frame: &mut Frame<'_>, area: Rect, look: &Look, paint: Paint) {
    let rows = look
        .drops
        .iter()
        .take(area.height.into())
        .map(|(reason, rate)| vec![reason.clone(), number(*rate)]);
    let headings = ["reason", "packets"];
    let table = table("dropped", &headings, rows.collect(), paint, Constraint::Min(10));
    frame.render_widget(table, area);
}

/// A number with its unit, as `12.3 kbit`.
fn quantity(value: f64, unit: &str) -> String {
    let number = number(value);
    let gap = if number.ends_with(|it: char| it.is_ascii_digit()) { " " } else { "" };
    format!("{number}{gap}{unit}")
}

/// Three digits and a decimal prefix: `0`, `0.50`, `12.3 k`, `4.56 M`.
fn number(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 1e9 => (value / 1e9, "G"),
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e3 => (value / 1e3, "k"),
        value => (value, ""),
    };
    let digits = match value {
        value if value == value.trunc() && unit.is_empty() => 0,
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::top::{LinkRate, Steered, Traffic};

    /// What a terminal of this size shows.
    fn shown(width: u16, height: u16, look: Option<&Look>, trouble: Option<&str>) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it is memory");
        let source = "https://127.0.0.1:8443";
        let around = Around { source, trouble, paused: false, colours: false };
        terminal.draw(|frame| draw(frame, look, &around)).expect("it is memory");
        terminal.backend().to_string()
    }

    fn look() -> Look {
        let traffic = |proto| Traffic { proto, received_per_s: 1.25e6, ..Traffic::default() };
        Look {
            version: "0.1.0".into(),
            sessions: 20_000,
            traffic: ["derp", "stun", "wireguard"].map(traffic).into(),
            drops: vec![("queue_head".into(), 12.0)],
            busiest: vec![LinkRate {
                link: "alice/bob".into(),
                packets_per_s: 800.0,
                bytes_per_s: 1.25e6,
            }],
            steered: Some(Steered { connected: false, revision: 44 }),
            ..Look::default()
        }
    }

    #[test]
    fn a_screen_has_what_an_operator_looks_for() {
        let shown = shown(120, 24, Some(&look()), None);
        for words in
            ["20000 sessions", "1.25 M", "alice/bob", "10.0 Mbit", "queue_head", "by revision 44"]
        {
            assert!(shown.contains(words), "no {words:?} in\n{shown}");
        }
    }

    #[test]
    fn a_small_terminal_and_a_silent_dataplane_are_no_fault() {
        for (width, height) in [(1, 1), (20, 5), (80, 3), (300, 100)] {
            shown(width, height, Some(&look()), Some("does not answer"));
        }
        let shown = shown(80, 10, None, Some("does not answer"));
        assert!(shown.contains("does not answer"), "{shown}");
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in
            [(0.0, "0"), (0.5, "0.50"), (999.0, "999"), (12_345.0, "12.3 k"), (4.5e9, "4.50 G")]
        {
            assert_eq!(number(value), text);
        }
    }
}
