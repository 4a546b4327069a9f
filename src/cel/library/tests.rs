//! Functions of the libraries: calls and what comes of them.

use std::sync::Mutex;

use crate::cel::{
    Activation, Authorizer, Budget, CompileError, Decision, Environment, LibraryType, Origin,
    Program, ResourceCheck, Subject, Type, Value,
    testing::{eval, shown},
};

fn check(rows: &[(&str, &str)]) {
    for (text, want) in rows {
        let found = eval(text);
        assert!(
            found == *want || found.contains(want) && want.len() > 12,
            "{text}\n{found}"
        );
    }
}

#[test]
fn strings() {
    check(&[
        ("'añb'.charAt(1) + 'ab'.charAt(2)", "\"ñ\""),
        ("'ab'.charAt(3)", "error: index out of range: 3"),
        ("'hello'.indexOf('l')", "2"),
        ("'hello'.indexOf('l', 3)", "3"),
        ("'hello'.indexOf('')", "0"),
        ("'hello'.indexOf('', 9)", "5"),
        ("'hello'.indexOf('l', -1)", "error: index out of range: -1"),
        ("'hello'.indexOf('l', 20)", "-1"),
        ("'hello'.lastIndexOf('l')", "3"),
        ("'hello'.lastIndexOf('l', 2)", "2"),
        ("'hello'.lastIndexOf('lo', 4)", "3"),
        ("'aaa'.lastIndexOf('a', 1)", "1"),
        ("'hello'.lastIndexOf('')", "5"),
        ("'TacoCÆt'.lowerAscii()", "\"tacocÆt\""),
        ("'TacoCæt'.upperAscii()", "\"TACOCæT\""),
        ("'hello hello'.replace('he', 'we')", "\"wello wello\""),
        ("'hello hello'.replace('he', 'we', 1)", "\"wello hello\""),
        ("'hello'.replace('he', 'we', 0)", "\"hello\""),
        ("'ab'.replace('', '_')", "\"_a_b_\""),
        ("'a b c'.split(' ')", "[\"a\", \"b\", \"c\"]"),
        ("'a b c'.split(' ', 2)", "[\"a\", \"b c\"]"),
        ("'a b c'.split(' ', 0)", "[]"),
        ("'a b c'.split(' ', -1).size()", "3"),
        ("'añb'.split('')", "[\"a\", \"ñ\", \"b\"]"),
        ("'abc'.split('', 2)", "[\"a\", \"bc\"]"),
        ("'tañb'.substring(2)", "\"ñb\""),
        ("'tañb'.substring(1, 3)", "\"añ\""),
        ("'ab'.substring(1, 3)", "error: index out of range: 3"),
        (
            "'ab'.substring(2, 1)",
            "error: invalid substring range. start: 2, end: 1",
        ),
        ("' \\t ab\\n'.trim()", "\"ab\""),
        ("strings.quote('a\"b\\n')", "\"\\\"a\\\\\\\"b\\\\n\\\"\""),
        ("['a', 'b'].join()", "\"ab\""),
        ("['a', 'b'].join(', ')", "\"a, b\""),
        ("[dyn('a'), dyn(1)].join()", "error: join: invalid input: 1"),
        (
            "'hello'.contains('ll') && 'hello'.startsWith('he') && 'hello'.endsWith('lo')",
            "true",
        ),
        ("'hello'.matches('^h.*o$') && matches('a', 'a')", "true"),
        (
            "'a'.matches('(' + 'a')",
            "error: error parsing regexp: missing closing )",
        ),
        (
            "'hello'.reverse()",
            "found no matching overload for 'reverse' applied to 'string.()'",
        ),
    ]);
}

#[test]
fn formatting() {
    check(&[
        ("'%s %s %s'.format(['a', 1, 1.5])", "\"a 1 1.5\""),
        (
            "'%s'.format([[1, 'a', 1.5, b'x', null, duration('1s')]])",
            "duration(\\\"1s\\\")]\"",
        ),
        (
            "'%s'.format([{'b': 1, 'a': [true]}])",
            "\"{\\\"a\\\":[true], \\\"b\\\":1}\"",
        ),
        ("'%d and %d%%'.format([1, 2u])", "\"1 and 2%\""),
        (
            "'%f %.2f'.format([1.5, 1234567.891])",
            "\"1.500000 1,234,567.89\"",
        ),
        ("'%e'.format([1052.032911275])", "\"1.052033×10⁰³\""),
        ("'%b %b %b'.format([5, -5, true])", "\"101 -101 1\""),
        (
            "'%x %X %x'.format([30, 'hi!', b'\\xff'])",
            "\"1e 686921 ff\"",
        ),
        ("'%o'.format([11])", "\"13\""),
        ("'%f'.format(['NaN'])", "\"NaN\""),
        (
            "'%d'.format([dyn('a')])",
            "error: error during formatting: decimal clause can only be",
        ),
        (
            "'%d'.format(['a'])",
            "error during formatting: decimal clause can only be used on",
        ),
        ("'%s'.format([])", "index 0 out of range"),
        ("'%'.format([1])", "unexpected end of string"),
        ("'%a'.format([1])", "unrecognized formatting clause \"a\""),
        (
            "'%s'.format([1, 2])",
            "too many arguments supplied to string.format (expected 1, got 2)",
        ),
    ]);
}

#[test]
fn lists() {
    check(&[
        ("[1, 2, 3, 4].slice(1, 3)", "[2, 3]"),
        (
            "[1].slice(0, 2)",
            "error: cannot slice(0, 2), list is length 1",
        ),
        (
            "[1].slice(-1, 1)",
            "error: cannot slice(-1, 1), negative indexes not supported",
        ),
        ("[[1, 2], [3]].flatten()", "[1, 2, 3]"),
        ("[[1, [2]], [3]].flatten(2)", "expected type"), // mixed types
        ("[dyn([1, dyn([2])]), dyn([3])].flatten(2)", "expected type"),
        ("[[[1]]].flatten(2)", "[1]"),
        ("[[1]].flatten(-1)", "error: level must be non-negative"),
        ("[3, 1, 2].sort()", "[1, 2, 3]"),
        ("['b', 'a'].sort()", "[\"a\", \"b\"]"),
        ("lists.range(3)", "[0, 1, 2]"),
        ("[1, 2].reverse()", "[2, 1]"),
        ("[1, 2, 1].distinct()", "[1, 2]"),
        ("[1, 2, 2].isSorted() && !['b', 'a'].isSorted()", "true"),
        ("[1, 2, 3].sum() == 6 && [1.5, 1.5].sum() == 3.0", "true"),
        ("[duration('1m'), duration('1s')].sum()", "61s"),
        ("[].sum() == 0", "true"),
        ("[3, 1, 2].min() + [3, 1, 2].max()", "4"),
        (
            "[1].filter(i, i > 1).min()",
            "error: min called on empty list",
        ),
        ("[1, 2, 2].indexOf(2) + [1, 2, 2].lastIndexOf(2)", "3"),
        ("['a'].indexOf('b')", "-1"),
        (
            "sets.contains([1, 2], [2]) && !sets.contains([1], [1, 2])",
            "true",
        ),
        ("sets.equivalent([1, 1, 2], [2, 1])", "true"),
        (
            "sets.intersects([1, 2], [2, 3]) && !sets.intersects([1], [2])",
            "true",
        ),
        // Not before the next version.
        ("[1].includes(1)", "undeclared reference to 'includes'"),
    ]);
}

#[test]
fn what_is_stored_may_use_what_is_new() -> Result<(), CompileError> {
    let environment = Environment::new(Origin::Stored);
    let program = Program::compile(&environment, "[1].includes(1) && 'a'.includes('a')")?;
    let activation = Activation::new(&environment);
    let value = program.evaluate(&activation, &mut Budget::for_rules());
    assert_eq!(value.map(|value| value.as_bool()), Ok(Some(true)));
    Ok(())
}

#[test]
fn regular_expressions() {
    check(&[
        ("'abc 123'.find('[0-9]+')", "\"123\""),
        ("'abc'.find('[0-9]+')", "\"\""),
        ("'123 abc 456'.findAll('[0-9]+')", "[\"123\", \"456\"]"),
        ("'123 abc 456'.findAll('[0-9]+', 1)", "[\"123\"]"),
        ("'123 abc 456'.findAll('[0-9]+', -1).size()", "2"),
        (
            "'a'.find('(')",
            "error parsing regexp: missing closing ): `(`",
        ),
        (
            "'a'.find('(' + '')",
            "error: Illegal regex: error parsing regexp",
        ),
    ]);
}

#[test]
fn urls() {
    check(&[
        (
            "url('https://user@example.com:80/a/b?k=v').getScheme()",
            "\"https\"",
        ),
        (
            "url('https://example.com:80/').getHost()",
            "\"example.com:80\"",
        ),
        ("url('https://[::1]:80/').getHostname()", "\"::1\""),
        ("url('https://example.com:80/').getPort()", "\"80\""),
        ("url('https://example.com').getPort()", "\"\""),
        (
            "url('https://example.com/a b/').getEscapedPath()",
            "\"/a%20b/\"",
        ),
        ("url('/path').getEscapedPath()", "\"/path\""),
        (
            "url('https://example.com/?k1=a&k2=b&k2=c&d%20e=f+g').getQuery()",
            "{\"d e\": [\"f g\"], \"k1\": [\"a\"], \"k2\": [\"b\", \"c\"]}",
        ),
        ("url('https://example.com/a#b').getEscapedPath()", "\"/a\""),
        (
            "isURL('https://example.com') && isURL('/a') && !isURL('a/b') && !isURL('')",
            "true",
        ),
        (
            "isURL('https://a b/') || isURL('https://[::1') || isURL('https://a:x/')",
            "false",
        ),
        (
            "url('../a')",
            "URL parse error during conversion from string: parse \"../a\": invalid URI",
        ),
        ("url('https://a%zz')", "invalid URL escape \"%zz\""),
        ("url('https://a') == url('https://a')", "true"),
    ]);
}

#[test]
fn networks() {
    check(&[
        (
            "string(ip('::1')) + string(ip('192.168.0.1'))",
            "\"::1192.168.0.1\"",
        ),
        ("ip('127.0.0.1').family() + ip('::1').family()", "10"),
        (
            "isIP('1.2.3.4') && !isIP('1.2.3') && !isIP('::ffff:1.2.3.4') && !isIP('fe80::1%a')",
            "true",
        ),
        ("ip.isCanonical('::1') && !ip.isCanonical('0:0::1')", "true"),
        (
            "ip('0.0.0.0').isUnspecified() && ip('127.0.0.1').isLoopback()",
            "true",
        ),
        (
            "ip('224.0.0.1').isLinkLocalMulticast() && ip('169.254.1.1').isLinkLocalUnicast()",
            "true",
        ),
        (
            "ip('10.0.0.1').isGlobalUnicast() && !ip('255.255.255.255').isGlobalUnicast()",
            "true",
        ),
        (
            "ip('1.2.3.4') == ip('1.2.3.4') && ip('1.2.3.4') != ip('::1')",
            "true",
        ),
        (
            "ip('192.168.0.1.0')",
            "ParseAddr(\"192.168.0.1.0\"): IPv4 address too long",
        ),
        (
            "ip('256.1.1.1')",
            "ParseAddr(\"256.1.1.1\"): IPv4 field has value >255",
        ),
        ("ip('x')", "ParseAddr(\"x\"): unable to parse IP"),
        (
            "ip('2001:db8:::68')",
            "each colon-separated field must have at least one digit (at \":68\")",
        ),
        ("cidr('192.168.0.0/24').containsIP('192.168.0.9')", "true"),
        (
            "cidr('192.168.0.0/24').containsIP(ip('192.168.1.9'))",
            "false",
        ),
        (
            "cidr('192.168.0.0/16').containsCIDR('192.168.10.0/24')",
            "true",
        ),
        (
            "cidr('192.168.0.0/24').containsCIDR(cidr('192.168.0.0/16'))",
            "false",
        ),
        (
            "string(cidr('192.168.0.1/24').masked()) + string(cidr('10.0.0.9/8').ip())",
            "\"192.168.0.0/2410.0.0.9\"",
        ),
        ("cidr('::1/128').prefixLength()", "128"),
        (
            "isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0/33') && !isCIDR('10.0.0.0/08')",
            "true",
        ),
        (
            "cidr('192.168.0.0/')",
            "netip.ParsePrefix(\"192.168.0.0/\"): bad bits after slash: \"\"",
        ),
        (
            "type(ip('::1')) == net.IP && type(cidr('::1/8')) == net.CIDR",
            "true",
        ),
    ]);
}

#[test]
fn quantities_and_versions() {
    check(&[
        ("quantity('1.5Gi').asInteger()", "1610612736"),
        ("quantity('200M') == quantity('0.2G')", "true"),
        (
            "quantity('50k').add(20).sub(quantity('100k')).asInteger()",
            "-49980",
        ),
        ("quantity('50Mi').compareTo(quantity('50M'))", "1"),
        (
            "quantity('50M').isLessThan(quantity('50Mi')) && quantity('1').isGreaterThan(quantity('1m'))",
            "true",
        ),
        (
            "quantity('9999999999999999999999999999999999999G').isInteger()",
            "false",
        ),
        (
            "quantity('0.5').asInteger()",
            "error: cannot convert value to integer",
        ),
        ("quantity('50.703k').asApproximateFloat()", "50703.0"),
        ("sign(quantity('-1')) + sign(quantity('0'))", "-1"),
        (
            "quantity('10Mo')",
            "error: quantities must match the regular expression",
        ),
        (
            "quantity('10Mm')",
            "error: unable to parse quantity's suffix",
        ),
        (
            "isQuantity('1e3') && isQuantity('1E') && !isQuantity('') && !isQuantity('1e') ",
            "true",
        ),
        ("semver('1.2.3-rc.1').isLessThan(semver('1.2.3'))", "true"),
        ("semver('1.2.3').compareTo(semver('1.10.0'))", "-1"),
        (
            "semver('1.2.3+b').major() + semver('1.2.3').minor() + semver('1.2.3').patch()",
            "6",
        ),
        (
            "isSemver('1.2') || isSemver('v1.2.3') || isSemver('01.2.3')",
            "false",
        ),
        (
            "isSemver('v01.2', true) && semver('v1', true) == semver('1.0.0')",
            "true",
        ),
        (
            "semver('1.2')",
            "error: No Major.Minor.Patch elements found",
        ),
        (
            "semver('1.2.03')",
            "error: Patch number must not contain leading zeroes \"03\"",
        ),
        (
            "semver('v1.0-a', true)",
            "error: short version cannot contain PreRelease/Build meta data",
        ),
    ]);
}

#[test]
fn formats() {
    check(&[
        ("format.dns1123Label().validate('my-name')", "none"),
        (
            "format.dns1123Label().validate('My').value()[0]",
            "\"a lowercase RFC 1123 label must consist",
        ),
        ("format.dns1123LabelPrefix().validate('my-')", "none"),
        ("format.dns1123Subdomain().validate('a.b-c.d')", "none"),
        ("format.dns1035Label().validate('1a').hasValue()", "true"),
        ("format.qualifiedName().validate('a.b/c_d')", "none"),
        (
            "format.qualifiedName().validate('/c').value()",
            "prefix part must be non-empty",
        ),
        ("format.labelValue().validate('')", "none"),
        (
            "format.uri().validate('a').hasValue() && !format.uri().validate('/a').hasValue()",
            "true",
        ),
        (
            "format.uuid().validate('123e4567-e89b-12d3-a456-426614174000')",
            "none",
        ),
        (
            "format.byte().validate('aGVsbG8')",
            "optional([\"invalid base64\"])",
        ),
        (
            "format.date().validate('2021-02-30')",
            "optional([\"invalid date\"])",
        ),
        ("format.datetime().validate('2021-01-01T00:00:00Z')", "none"),
        ("format.named('uuid').value() == format.uuid()", "true"),
        ("format.named('nothing')", "none"),
    ]);
}

/// Allows what its rows name, and notes what it was asked.
#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Authorizer for Recorder {
    fn resource(&self, check: &ResourceCheck, verb: &str) -> Decision {
        let asked = format!("{verb} {check:?}");
        self.0.lock().map(|mut all| all.push(asked)).ok();
        Decision {
            allowed: check.name == "allowed",
            reason: "because".to_owned(),
            error: None,
        }
    }

    fn path(&self, _: &Subject, path: &str, _: &str) -> Decision {
        Decision {
            allowed: path == "/healthz",
            reason: String::new(),
            error: Some("broken".to_owned()),
        }
    }
}

#[test]
fn authorization() -> Result<(), CompileError> {
    let environment = Environment::new(Origin::New)
        .with_variable("authorizer", Type::Library(LibraryType::Authorizer))
        .with_variable(
            "authorizer.requestResource",
            Type::Library(LibraryType::ResourceCheck),
        );
    let recorder = Recorder::default();
    for (text, want) in [
        (
            "authorizer.group('').resource('pods').subresource('log').namespace('ns')\
             .name('allowed').fieldSelector('a=b').labelSelector('c').check('get').allowed()",
            "true",
        ),
        (
            "authorizer.group('apps').resource('deployments').check('create').reason()",
            "\"because\"",
        ),
        ("authorizer.path('/healthz').check('get').allowed()", "true"),
        ("authorizer.path('/x').check('get').error()", "\"broken\""),
        ("authorizer.path('/x').check('get').errored()", "true"),
        ("authorizer.path(' ')", "path must not be empty"),
        (
            "authorizer.group('').resource('')",
            "resource must not be empty",
        ),
        (
            "authorizer.serviceAccount('ns', 'sa').group('').resource('pods').check('get').allowed()",
            "false",
        ),
        (
            "authorizer.serviceAccount('ns', 'S A')",
            "Invalid service account name",
        ),
        (
            "authorizer.requestResource.check('update').allowed()",
            "true",
        ),
    ] {
        let program = Program::compile(&environment, text)?;
        let own = ResourceCheck {
            name: "allowed".to_owned(),
            ..ResourceCheck::default()
        };
        let mut activation = Activation::new(&environment);
        activation
            .bind("authorizer", Value::authorizer(&recorder))
            .bind(
                "authorizer.requestResource",
                Value::request_resource(&recorder, own),
            );
        let found = match program.evaluate(&activation, &mut Budget::for_rules()) {
            Ok(value) => shown(&value),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, want, "{text}");
    }
    let asked = recorder
        .0
        .lock()
        .map(|all| all.join("\n"))
        .unwrap_or_default();
    for part in [
        "\"log\"",
        "\"ns\"",
        "\"a=b\"",
        "labelSelector",
        "ServiceAccount",
    ] {
        let part = part.replace("labelSelector", "label_selector: \"c\"");
        assert!(asked.contains(&part), "{part} in {asked}");
    }
    Ok(())
}
