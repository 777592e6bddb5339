"""How a radiologist words a phantom's findings: a report in MIMIC-CXR's layout. What is to be seen is decided in
`findings`."""

from __future__ import annotations

import textwrap

import numpy as np

from trainers.data.findings import Finding

NORMAL_IMPRESSION = "No acute cardiopulmonary process."  # the real set's commonest impression by far
NORMAL_IMPRESSIONS = (
    "No acute cardiopulmonary abnormality.",
    "No acute intrathoracic process.",
    "Normal chest radiograph.",
    "No evidence of acute cardiopulmonary disease.",
)
SHARED_NORMAL = 0.7  # share of normal studies whose impression is NORMAL_IMPRESSION

SIZE = {
    "small": ("small", "tiny", "trace"),
    "moderate": ("moderate", "moderate-sized"),
    "large": ("large", "extensive"),
}
DEGREE = {"small": ("mild", "minimal"), "moderate": ("moderate",), "large": ("severe", "marked")}
ZONE = {
    "upper": ("upper lobe", "upper lung", "apical"),
    "mid": ("mid lung", "perihilar"),
    "lower": ("lower lobe", "basilar"),
}
PLACE = {
    "upper": ("upper lobe", "upper lung", "apex"),
    "mid": ("mid lung", "perihilar region"),
    "lower": ("lower lobe", "lung base"),
}

IMPRESSIONS = {
    "Atelectasis": (
        "{degree} {side} basilar atelectasis.",
        "{side} basilar linear atelectasis.",
        "Low lung volumes with {side} basal atelectasis.",
    ),
    "Cardiomegaly": (
        "{degree} cardiomegaly.",
        "Heart is {degree}ly enlarged.",
        "{degree} enlargement of the cardiac silhouette.",
    ),
    "Consolidation": (
        "{side} {zone} consolidation.",
        "{size} consolidation in the {side} {place}.",
        "Dense {side} {zone} airspace consolidation.",
    ),
    "Edema": (
        "{degree} pulmonary edema.",
        "{degree} interstitial pulmonary edema.",
        "{degree} pulmonary vascular congestion and edema.",
    ),
    "Enlarged Cardiomediastinum": ("Widened mediastinum.", "{degree} widening of the mediastinal contour."),
    "Fracture": ("{side} rib fractures.", "Healing {side} rib fracture.", "Displaced {side}-sided rib fractures."),
    "Lung Lesion": (
        "{size} {side} {zone} nodule.",
        "{side} {zone} pulmonary nodule.",
        "Nodular lesion in the {side} {place}.",
    ),
    "Lung Opacity": (
        "{side} {zone} opacity.",
        "Hazy opacity in the {side} {place}.",
        "Ill-defined {side} {zone} opacity.",
    ),
    "Pacemaker": ("{side}-sided pacemaker in place.", "{side} chest wall pacemaker with leads in standard position."),
    "Pleural Effusion": (
        "{size} {side} pleural effusion{s}.",
        "{side} pleural effusion{s}, {size}.",
        "{size} {side} effusion{s}.",
    ),
    "Pleural Other": ("{side} pleural thickening.", "{degree} {side} pleural thickening."),
    "Pneumonia": (
        "{side} {zone} pneumonia.",
        "Findings consistent with {side} {zone} pneumonia.",
        "{side} {zone} opacity concerning for pneumonia.",
    ),
    "Pneumothorax": (
        "{size} {side} pneumothorax.",
        "{size} {side} apical pneumothorax.",
        "{side}-sided pneumothorax, {size}.",
    ),
    "Tubes": (
        "Lines and tubes in appropriate position.",
        "{side} central venous catheter terminates in the SVC.",
        "Support devices in unchanged position.",
    ),
}
ENDINGS = ("{words}.", "{words} {is_} seen.", "{words} {is_} present.", "{words} {is_} noted.")
PLURAL = ("effusions.", "fractures.")
WHOLE = ("Heart", "Lines", "Support", "Findings", "Low")  # sentences that begin so need no ending
CLEAR = {
    "heart": (
        "The cardiac and mediastinal silhouettes are normal.",
        "Heart size is normal.",
        "The cardiomediastinal silhouette is within normal limits.",
    ),
    "lungs": ("The lungs are clear.", "The lungs are well expanded and clear.", "No focal consolidation."),
    "pleura": (
        "There is no pleural effusion or pneumothorax.",
        "No effusion or pneumothorax is seen.",
        "Pleural surfaces are clear.",
    ),
    "bones": (
        "The bony structures are intact.",
        "No acute osseous abnormality.",
        "Osseous structures are unremarkable.",
    ),
}
ORGAN = {
    "Cardiomegaly": "heart",
    "Enlarged Cardiomediastinum": "heart",
    "Fracture": "bones",
    "Pleural Effusion": "pleura",
    "Pneumothorax": "pleura",
    "Pleural Other": "pleura",
    "Pacemaker": None,
    "Tubes": None,
}  # every other kind is in the lungs


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.random() * len(options))]


def _sentence(finding: Finding, rng: np.random.Generator) -> str:
    words = _pick(IMPRESSIONS[finding.kind], rng).format(
        side=finding.side,
        size=_pick(SIZE[finding.severity], rng),
        degree=_pick(DEGREE[finding.severity], rng),
        zone=_pick(ZONE[finding.zone], rng),
        place=_pick(PLACE[finding.zone], rng),
        s="s" if finding.side == "bilateral" else "",
    )
    words = words.replace("minimally", "mildly")
    if not finding.sure:
        words = (
            "Possible " + words[0].lower() + words[1:]
            if not words.startswith("Heart is")
            else words.replace("is", "may be", 1)
        )
    return words[0].upper() + words[1:]


def _impression(findings: tuple[Finding, ...], rng: np.random.Generator) -> str:
    if not findings:
        return NORMAL_IMPRESSION if rng.random() < SHARED_NORMAL else _pick(NORMAL_IMPRESSIONS, rng)
    sentences = [_sentence(finding, rng) for finding in findings]
    if len(sentences) > 1 and rng.random() < 0.4:
        return "\n \n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))
    return " ".join(sentences)


def _findings(findings: tuple[Finding, ...], rng: np.random.Generator) -> str:
    sentences = []
    for finding in findings:
        words, ending = _sentence(finding, rng), _pick(ENDINGS, rng)
        if finding.label != "Support Devices" and "," not in words and words.split()[0] not in WHOLE:
            words = ending.format(words=words[:-1], is_="are" if words.endswith(PLURAL) else "is")
        sentences.append(words)
    ill = {ORGAN.get(finding.kind, "lungs") for finding in findings}
    sentences += [_pick(options, rng) for organ, options in CLEAR.items() if organ not in ill and rng.random() < 0.85]
    return " ".join(sentences) or "The lungs are clear."


def _wrapped(text: str) -> str:
    return "\n".join(
        textwrap.fill(part.strip(), 78, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)
        if part.strip()
        else " "
        for part in text.split("\n")
    )


def report(findings: tuple[Finding, ...], procedure: str, person: str, rng: np.random.Generator) -> str:
    """A study's report, wrapped as MIMIC-CXR's are. About one in twelve lacks FINDINGS, one in twelve IMPRESSION."""
    indication = _pick(
        ("Cough.", "Shortness of breath.", "Chest pain.", "Fever.", "Preoperative evaluation.", "___"), rng
    )
    impression, seen = _impression(findings, rng), _findings(findings, rng)
    which = rng.random()
    parts = [
        f"EXAMINATION:  {procedure}",
        f"INDICATION:  ___ year old {person}.  {indication}",
        "TECHNIQUE:  Frontal view of the chest.",
        "COMPARISON:  ___.",
    ]
    if which > 1 / 12:
        parts.append(f"FINDINGS: \n \n{seen}")
    if which < 11 / 12:
        parts.append(f"IMPRESSION: \n \n{impression}")
    return " " * 33 + "FINAL REPORT\n" + "\n \n".join(_wrapped(part) for part in parts) + "\n"
