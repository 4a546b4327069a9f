use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record as Full, RecordType,
        rdata::{A, CNAME, SOA},
    },
};

use super::*;

const NAME: &str = "www.Example.org.";

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// With what the client can take, and whether it wants signatures.
fn asked(id: u16, text: &str, edns: Option<(u16, bool)>) -> Asked {
    let mut query = Message::query();
    query.metadata.id = id;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(text), RecordType::A));
    query.edns = edns.map(|(payload, dnssec)| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        edns.set_dnssec_ok(dnssec);
        edns
    });
    Asked::read(&query.to_vec().unwrap()).unwrap()
}

fn address(ttl: u32, last: u8) -> Full {
    Full::from_rdata(name(NAME), ttl, RData::A(A::new(192, 0, 2, last)))
}

fn alias(ttl: u32) -> Full {
    let data = RData::CNAME(CNAME(name("other.example.org.")));
    Full::from_rdata(name(NAME), ttl, data)
}

fn authority(ttl: u32, minimum: u32) -> Full {
    let names = [name("ns.example.org."), name("mail.example.org.")];
    let [server, mail] = names;
    let data = SOA::new(server, mail, 1, 2, 3, 4, minimum);
    Full::from_rdata(name("example.org."), ttl, RData::SOA(data))
}

fn message(code: ResponseCode, answers: Vec<Full>, authorities: Vec<Full>) -> Message {
    let mut answer = Message::new(7, MessageType::Response, OpCode::Query);
    answer.metadata.response_code = code;
    answer.metadata.recursion_available = true;
    answer.metadata.authoritative = true;
    answer.add_query(Query::query(name(NAME), RecordType::A));
    answer.add_answers(answers);
    answer.add_authorities(authorities);
    answer
}

fn said(message: &Message) -> Said {
    Said::read(&message.to_vec().unwrap(), &asked(7, NAME, None)).unwrap()
}

#[test]
fn for_how_long_an_answer_is_kept() {
    use ResponseCode::{FormErr, NXDomain, NoError, Refused, ServFail};
    let records = |seconds| Lifetime::Records(Duration::from_secs(seconds));
    let absence = |seconds| Lifetime::Absence(Duration::from_secs(seconds));
    let soa = || vec![authority(300, 60)];
    for (code, answers, authorities, want) in [
        (NoError, vec![address(60, 1)], vec![], records(60)),
        // The shortest counts, of what is only said on the way too.
        (
            NoError,
            vec![alias(20), address(60, 1)],
            vec![],
            records(20),
        ),
        (
            NoError,
            vec![address(60, 1)],
            vec![authority(5, 60)],
            records(5),
        ),
        (NoError, vec![address(0, 1)], vec![], records(0)),
        (NoError, vec![address(1 << 31, 1)], vec![], records(0)), // RFC 2181, 8
        // RFC 2308: the SOA's own time or its minimum, whichever is less.
        (NXDomain, vec![], soa(), absence(60)),
        (NXDomain, vec![], vec![authority(30, 60)], absence(30)),
        (NXDomain, vec![alias(20)], soa(), absence(20)),
        (NoError, vec![], soa(), absence(60)),
        (NoError, vec![alias(20)], soa(), absence(20)), // an alias to a name without addresses
        (NXDomain, vec![], vec![], Lifetime::Not),
        (NoError, vec![], vec![], Lifetime::Not),
        (NoError, vec![alias(20)], vec![], Lifetime::Not),
        (FormErr, vec![], vec![], Lifetime::Not),
        (ServFail, vec![], soa(), Lifetime::Failure),
        (Refused, vec![], vec![], Lifetime::Failure),
    ] {
        let about = format!("{code} {answers:?} {authorities:?}");
        let said = said(&message(code, answers, authorities));
        assert_eq!(said.lifetime(), want, "{about}");
    }
    let mut cut = message(NoError, vec![address(60, 1)], vec![]);
    cut.metadata.truncation = true;
    assert_eq!(said(&cut).lifetime(), Lifetime::Not);
}

#[test]
fn what_makes_another_question() {
    let plain = asked(1, NAME, None);
    for (other, is_same) in [
        (asked(2, "WWW.example.ORG.", None), true),
        (asked(1, "www.example.com.", None), false),
        (asked(1, NAME, Some((1232, false))), false),
    ] {
        assert_eq!(plain.key == other.key, is_same, "{other:?}");
    }
    let [little, much] = [512, 4096].map(|size| asked(1, NAME, Some((size, false))));
    assert_eq!(little.key, much.key); // it is cut for whom it is too long
    assert_ne!(much.key, asked(1, NAME, Some((4096, true))).key);
    // Recursion, what was checked, what was not.
    let mut bytes = plain.query([0, 1]);
    for (at, bit) in [(2, 1), (3, 0x20), (3, 0x10)] {
        bytes[at] ^= bit;
        assert_ne!(Asked::read(&bytes).unwrap().key, plain.key, "{at} {bit}");
        bytes[at] ^= bit;
    }
    assert_eq!(Asked::read(&bytes).unwrap().key, plain.key);
}

/// What is sent upstream is what can be read back, and nothing of the client's own.
#[test]
fn what_a_server_is_asked() {
    for edns in [None, Some((4096, false)), Some((512, true))] {
        let query = asked(99, NAME, edns).query([1, 2]);
        let read = Message::from_vec(&query).unwrap();
        assert_eq!(read.metadata.id, 0x102);
        assert!(read.metadata.recursion_desired);
        let said = read
            .edns
            .map(|edns| (edns.max_payload(), edns.flags().dnssec_ok));
        assert_eq!(said, edns.map(|(_, dnssec)| (PAYLOAD, dnssec)));
        assert_eq!(read.queries[0].name().to_string(), NAME);
    }
}

#[test]
fn each_client_has_its_own_reply() {
    let answers = (1..=60).map(|last| address(100, last)).collect();
    let said = said(&message(
        ResponseCode::NoError,
        answers,
        vec![authority(50, 60)],
    ));
    // 12 bytes of header, 21 of question, 16 for each answer, 11 for what is said of extensions.
    for (edns, transport, age, count, ttl) in [
        (None, Transport::Tcp, Age::New, 60, 100),
        (None, Transport::Udp, Age::New, (512 - 33) / 16, 100),
        (
            Some((512, false)),
            Transport::Udp,
            Age::Seconds(7),
            (512 - 44) / 16,
            93,
        ),
        (
            Some((1, true)),
            Transport::Udp,
            Age::Seconds(7),
            (512 - 44) / 16,
            93,
        ),
        (
            Some((65_535, true)),
            Transport::Udp,
            Age::Seconds(99),
            60,
            1,
        ),
        (
            Some((4096, false)),
            Transport::Udp,
            Age::Stale,
            60,
            STALE_TTL,
        ),
    ] {
        let asked = asked(0x4321, "WWW.EXAMPLE.ORG.", edns);
        let bytes = said.reply(&asked, age, transport);
        let reply = Message::from_vec(&bytes).unwrap();
        let about = format!("{edns:?} {transport:?} {age:?}");
        assert_eq!(reply.metadata.id, 0x4321, "{about}");
        assert_eq!(reply.answers.len(), count, "{about}");
        assert!(
            reply.answers.iter().all(|record| record.ttl == ttl),
            "{about}"
        );
        let is_whole = count == 60;
        assert_eq!(reply.metadata.truncation, !is_whole, "{about}");
        assert_eq!(reply.authorities.len(), usize::from(is_whole), "{about}");
        assert_eq!(reply.metadata.authoritative, age == Age::New, "{about}");
        let text = reply.queries[0].name().to_string();
        assert_eq!(text, "WWW.EXAMPLE.ORG.", "{about}");
        let dnssec = reply.edns.as_ref().map(|edns| edns.flags().dnssec_ok);
        assert_eq!(dnssec, edns.map(|(_, dnssec)| dnssec), "{about}");
    }
}

#[test]
fn what_says_something_of_extensions_is_for_the_server_alone() {
    let mut answer = message(ResponseCode::NoError, vec![address(60, 1)], vec![]);
    answer.edns = Some(Edns::new());
    let said = said(&answer);
    assert_eq!(said.counts, [1, 0, 0]);
    let reply = said.reply(&asked(1, NAME, None), Age::New, Transport::Udp);
    assert!(Message::from_vec(&reply).unwrap().edns.is_none());
}

#[test]
fn whatever_comes_is_read_or_refused() {
    let mut answer = message(
        ResponseCode::NoError,
        vec![alias(20), address(60, 1)],
        vec![authority(5, 6)],
    );
    answer.edns = Some(Edns::new());
    let bytes = answer.to_vec().unwrap();
    for edns in [None, Some((512, true))] {
        let asked = asked(7, NAME, edns);
        for length in 0..bytes.len() {
            assert_eq!(Said::read(&bytes[..length], &asked), None, "{length}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[at] ^= 1 << bit;
                // Any of them, as long as it does not panic.
                if let Some(said) = Said::read(&other, &asked) {
                    for transport in [Transport::Udp, Transport::Tcp] {
                        said.reply(&asked, Age::Seconds(1), transport);
                    }
                }
                Asked::read(&other);
            }
        }
    }
}

#[test]
fn only_the_answer_to_the_question_counts() {
    let name = |name: &str| [&[name.len() as u8][..], name.as_bytes(), &[0, 0, 1, 0, 1]].concat();
    let message = |id: u8, flags: [u8; 2], name: &[u8]| {
        [
            &[7, id, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, 0][..],
            name,
        ]
        .concat()
    };
    let query = message(9, [1, 0], &name("example"));
    for (answer, want) in [
        (message(9, [0x81, 0], &name("example")), true),
        (message(9, [0x81, 0], &name("EXAMPLE")), true),
        (message(8, [0x81, 0], &name("example")), false), // another number
        (message(9, [0x01, 0], &name("example")), false), // a query
        (message(9, [0x81, 0], &name("exampl3")), false), // another question
        (message(9, [0x89, 0], &name("example")), false), // another kind
        (vec![7, 9, 0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0], true), // not understood
        (vec![7, 9, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0], false), // nothing, to nothing
        (vec![7, 9], false),
    ] {
        assert_eq!(answers(&answer, &query), want, "{answer:?}");
    }
    let long = [message(9, [0x81, 0], &name("example")), vec![1; 5000]].concat();
    assert_eq!(cut(&long, &query), message(9, [0x83, 0], &name("example")));
}
