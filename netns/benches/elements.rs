//! What elements of maps cost the kernel, by how many there are. As root: `cargo bench -p netns --bench elements`.
//! Units are printed; figures are medians.
//!
//! Cases: destinations that lead to verdicts, and those that lead to numbers of chains, as the proxy has them;
//! all of them anew, and one more; without anybody else who listens to nf_tables in the namespace, and with `nft monitor`.
//! What listens in other namespaces of the machine costs something too.

use std::{
    ops::Range,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use netns::{
    Namespace,
    nft::{
        BaseChain, Batch, ChainKind, Element, Family, Hook, Policy, Reg, Rule, Set, SetKind,
        Socket, Table, Type, Value, Verdict,
    },
};
use nix::time::{ClockId, clock_gettime};

/// Destinations, and backends of each.
const SIZES: [(u32, u32); 3] = [(10, 2), (10_000, 2), (44_000, 1)];
const WRITES: usize = 5;
const MORE: u32 = 100;
const FRONT: &[Type] = &[Type::Ipv4, Type::Protocol, Type::Port];
const BACK: &[Type] = &[Type::Ipv4, Type::Protocol, Type::Port, Type::Class];
const FIRST_PLACE: u32 = 0x7665_0000;
const CHAIN: [u8; 4] = 0x7664_0002_u32.to_ne_bytes();

#[derive(Clone, Copy, Debug)]
enum Leads {
    ToVerdicts,
    ToNumbers,
}

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("elements: skipped, needs root");
        return;
    }
    for size in SIZES {
        for leads in [Leads::ToVerdicts, Leads::ToNumbers] {
            for listener in [None, Some("nft monitor")] {
                let namespace = Namespace::create().unwrap();
                namespace.run(|| measure(size, leads, listener)).unwrap();
            }
        }
    }
}

fn measure((count, backends): (u32, u32), leads: Leads, listener: Option<&str>) {
    let table = Table::new(Family::Ip, "bench");
    let mut socket = Socket::open().unwrap();
    let _listening = listener.map(Listening::start);
    let mut take = |batch: Batch| {
        let (begun, before) = (Instant::now(), processor());
        socket.commit(batch).unwrap();
        (begun.elapsed(), processor() - before)
    };
    let all = (0..WRITES).map(|_| take(whole(&table, count, backends, leads)));
    let all: Vec<_> = all.collect();
    let more = (count + 1..=count + MORE).map(|number| {
        let mut batch = Batch::new();
        add(&mut batch, &table, number..number + 1, backends, leads);
        take(batch)
    });
    let more: Vec<_> = more.collect();
    let with = listener.unwrap_or("nobody");
    let name = format!("elements/{count} x {backends}, {leads:?}, {with}");
    for (what, figures) in [("all anew", all), ("one more", more)] {
        let (took, spent): (Vec<_>, Vec<_>) = figures.into_iter().unzip();
        let (took, spent) = (median(took), median(spent));
        println!("{name}: {what:<12} {took:>9.3} ms, {spent:>9.3} ms of the processor");
    }
}

struct Listening(Child);

impl Listening {
    fn start(command: &str) -> Self {
        let mut words = command.split(' ');
        let mut command = Command::new(words.next().unwrap());
        let child = command.args(words).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        Self(child)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The processor's time of this thread so far.
fn processor() -> Duration {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock_gettime(clock).unwrap().into()
}

fn median(mut figures: Vec<Duration>) -> f64 {
    figures.sort();
    figures[figures.len() / 2].as_secs_f64() * 1e3
}

/// Four base chains lead to the destinations, as in the proxy's table.
fn whole(table: &Table, count: u32, backends: u32, leads: Leads) -> Batch {
    let mut batch = Batch::new();
    let front = match leads {
        Leads::ToVerdicts => SetKind::VerdictMap,
        Leads::ToNumbers => SetKind::Map(&[Type::Class]),
    };
    let back = SetKind::Map(&[Type::Ipv4, Type::Port]);
    batch
        .remove_table(table)
        .add_table(table)
        .add_set(table, &Set::new("ips", &[Type::Ipv4], SetKind::Set))
        .add_set(table, &Set::new("fronts", FRONT, front))
        .add_set(table, &Set::new("backs", BACK, back))
        .add_set(
            table,
            &Set::new("leads-to", &[Type::Class], SetKind::VerdictMap),
        )
        .add_chain(table, "deal");
    let load = || {
        let rule = Rule::new().destination_v4(Reg(0)).protocol(Reg(1));
        rule.destination_port(Reg(2))
    };
    for (chain, priority) in [("pooled", -102), ("services", -100)] {
        let found = match leads {
            Leads::ToVerdicts => load().verdict_of("fronts", Reg(0)),
            Leads::ToNumbers => load()
                .look_up("fronts", Reg(0), Reg(3))
                .set_priority(Reg(3))
                .load_priority(Reg(0))
                .verdict_of("leads-to", Reg(0)),
        };
        batch.add_chain(table, chain).add_rule(table, chain, found);
        for (hook, name) in [(Hook::Prerouting, "prerouting"), (Hook::Output, "output")] {
            let base = BaseChain {
                kind: ChainKind::Nat,
                hook,
                priority,
                policy: Policy::Accept,
            };
            let name = format!("{chain}-{name}");
            let jump = Rule::new().verdict(&Verdict::Jump(chain.into()));
            batch
                .add_base_chain(table, &name, base)
                .add_rule(table, &name, jump);
        }
    }
    let drawn = Rule::new().random(Reg(0), backends, FIRST_PLACE);
    let led = load().load_priority(Reg(3));
    let led = led.look_up("backs", Reg(0), Reg(4));
    batch
        .add_rule(table, "deal", drawn.set_priority(Reg(0)))
        .add_rule(table, "deal", led.destination_nat(false, Reg(4), Reg(5)))
        .add_elements(table, "leads-to", [element(&CHAIN, goto())]);
    add(&mut batch, table, 1..count + 1, backends, leads);
    batch
}

/// Destinations of these numbers, with all that a Service has.
fn add(batch: &mut Batch, table: &Table, numbers: Range<u32>, backends: u32, leads: Leads) {
    let address = |number: u32| (0x0a64_0000 + number).to_be_bytes();
    let front = |number| [&address(number)[..], &[6, 0, 0, 0, 0, 80, 0, 0]].concat();
    let back = |number, place: u32| {
        let key = [front(number), (FIRST_PLACE + place).to_ne_bytes().to_vec()].concat();
        element(&key, Value::Data(vec![10, 200, 0, 1, 31, 144, 0, 0]))
    };
    let to = match leads {
        Leads::ToVerdicts => goto(),
        Leads::ToNumbers => Value::Data(CHAIN.to_vec()),
    };
    let places = |number| (0..backends).map(move |place| (number, place));
    let ips = numbers
        .clone()
        .map(|one| element(&address(one), Value::None));
    let backs = numbers.clone().flat_map(places);
    batch
        .add_elements(table, "ips", ips)
        .add_elements(
            table,
            "backs",
            backs.map(|(number, place)| back(number, place)),
        )
        .add_elements(
            table,
            "fronts",
            numbers.map(|one| element(&front(one), to.clone())),
        );
}

fn goto() -> Value {
    Value::Verdict(Verdict::Goto("deal".into()))
}

fn element(key: &[u8], value: Value) -> Element {
    Element {
        key: key.to_vec(),
        value,
    }
}
