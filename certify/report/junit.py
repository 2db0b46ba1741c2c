"""junit.xml: one case per file, tensor and layer, one for the adapter's accounts, two for the gate itself, and one for each thing that only
the end could tell (accept list, the whole adapter's retention, what changed meanwhile); as pytest's own counts.

Facts of the run are properties of the suite; a case has properties only where it failed: GitLab reads 30 MB at most, and 92,000 cases
with properties come near that.
"""

import hashlib
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from certify.finding import Finding, Outcome
from certify.report.text import identifier, paragraph, printable

if TYPE_CHECKING:
    from certify.verdict import Certificate

TENSORS, ACCOUNTS = "certify.tensors", "certify.adapter"
CONCLUSION = "certify.conclusion"
CLASSES = {"C1": "certify.files", "C7": "certify.files", "C6": "certify.self-check", "C9": "certify.layers", "C10": "certify.logits"}
COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}
MESSAGE, BRIEF = 300, 80  # characters; the whole text stands in the element
SPOKEN = 1000  # failures told in full; of others there is a short message: nobody reads them, and 92,000 of them must stay below 30 MB
NAME = 500  # characters of a name; a longer one is cut, and told apart by its digest

Cases = dict[tuple[str, str], list[Finding]]


def render(certificate: "Certificate", findings: Iterable[Finding]) -> str:
    """The document."""
    predicate = certificate.statement["predicate"]
    declared = [Finding(item["code"], item["subject"], Outcome.PASSED) for item in predicate["accepted"]]
    closing = {id(finding) for finding in certificate.closing}
    asked = [finding for finding in findings if id(finding) not in closing]
    cases = [_case(*key, found) for key, found in _cases([*asked, *declared]).items()]
    cases += [_case(CONCLUSION, f"{finding.code} {finding.subject}", [finding]) for finding in certificate.closing]
    if predicate["verdict"] == "ERROR":
        cases.append(ET.Element("testcase", classname="certify", name="the gate itself", time="0"))
        ET.SubElement(cases[-1], "error", message=printable(predicate["reason"])[:MESSAGE], type="ERROR")
    _abridge(cases)
    counts = {name: str(sum(case.find(tag) is not None for case in cases)) for name, tag in COUNTED.items()}
    root = ET.Element("testsuites", name="certify")
    suite = ET.SubElement(root, "testsuite", {"name": "certify", "tests": str(len(cases)), "time": "0"} | counts)
    digests = [(f"sha256:{file['name']}", file["digest"]["sha256"]) for file in certificate.statement["subject"]]
    _properties(suite, _facts(predicate) + digests)
    suite.extend(cases)
    ET.indent(root)
    return "<?xml version='1.0' encoding='utf-8'?>\n" + ET.tostring(root, encoding="unicode") + "\n"


def _cases(findings: Iterable[Finding]) -> Cases:
    """Findings by case. C2 speaks once about every tensor; what is neither a file nor such a tensor belongs to the adapter's accounts."""
    findings = list(findings)
    tensors = {finding.subject for finding in findings if finding.code == "C2"}
    cases: Cases = {}
    for finding in findings:
        if finding.code in CLASSES:
            key = CLASSES[finding.code], finding.subject
        elif finding.subject in tensors:
            key = TENSORS, finding.subject
        else:
            key = ACCOUNTS, "accounts"
        cases.setdefault(key, []).append(finding)
    return cases


def elements(findings: Iterable[Finding]) -> Iterator[ET.Element]:
    """The cases of some findings."""
    return (_case(*key, found) for key, found in _cases(findings).items())


def _name(subject: str) -> str:
    """The subject, made harmless; different subjects have different names."""
    name = identifier(subject)
    if len(name) <= NAME:
        return name
    return f"{name[:NAME]} … {hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _abridge(cases: Iterable[ET.Element]) -> None:
    """Shorten what is told of all failures but the first SPOKEN."""
    told = 0
    for case in cases:
        if (child := case.find("failure")) is None and (child := case.find("skipped")) is None:
            continue
        told += 1
        if told > SPOKEN:
            child.text, child.attrib["message"] = None, child.attrib["message"][:BRIEF]
            for properties in case.findall("properties"):
                case.remove(properties)


def _case(classname: str, name: str, found: list[Finding]) -> ET.Element:
    """A case fails if a check failed, and is skipped if none did and something could not be interpreted."""
    case = ET.Element("testcase", classname=classname, name=_name(name), time="0")
    failed = [finding for finding in found if finding.outcome is Outcome.FAILED]
    unknown = [finding for finding in found if finding.outcome is Outcome.NOT_INTERPRETED]
    if told := failed or unknown:
        text = "\n".join(f"{finding.code}  {finding.sentence}" for finding in told)
        message = printable(f"{told[0].code}: {told[0].sentence}")[:MESSAGE]
        _properties(case, [(f"{finding.code}.{key}", value) for finding in failed for key, value in finding.figures.items()])
        child = ET.SubElement(case, "failure" if failed else "skipped", message=message, type=told[0].code)
        child.text = "\n".join(paragraph(text))
    return case


def _facts(predicate: dict[str, object]) -> list[tuple[str, object]]:
    names = ("verdict", "level", "reason", "criterion", "output_dtype", "command")
    adapters = predicate["adapters"]
    assert isinstance(adapters, list)
    return [(name, predicate[name]) for name in names] + [(f"adapter:{adapter['name']}", adapter["digest"]) for adapter in adapters]


def _properties(parent: ET.Element, facts: list[tuple[str, object]]) -> None:
    if facts:
        properties = ET.SubElement(parent, "properties")
        for name, value in facts:
            ET.SubElement(properties, "property", name=printable(name), value=printable(str(value)))
