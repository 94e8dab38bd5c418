"""What the demo says to visitors, in English and in Korean, and the words that people use for the classes of a run."""

import re

LANGUAGES = ("en", "ko")

# the page's own words; those of its fixed parts are chosen by the browser (gradio.I18n), those of an answer by `say`
WORDS = {
    "en": {
        "kept": "Photos are classified and deleted: nothing that you send is kept.",
        "upload": "Upload",
        "photos": "Photos, {most} at most",
        "heat": "Show at once where the model looks (Grad-CAM)",
        "examples": "Or try one of these",
        "webcam": "Webcam",
        "still": "Still",
        "live": "Live",
        "make": "Make a picture",
        "no_gan": "No pictures can be made yet: nobody has trained this run's generator. Whoever runs this page does "
        "that with `{command}`.",
        "label": "Label",
        "seed": "Seed: the same seed gives the same picture",
        "make_it": "Make it",
        "save_csv": "Save answers.csv",
        "save_picture": "Save the picture",
        "sure": "{label}, {share} sure.",
        "labels": "{labels}.",
        "no_label": "None of the labels; the likeliest is {labels}.",
        "faces": "{count} faces were found: this is the one in the box, the main one by size and place.",
        "no_face": "No face was found in this photo, so there is no answer.",
        "not_sent": "This file was not uploaded.",
        "bad_file": "This file can't be classified: {why}.",
        "bad_frame": "This frame can't be classified: {why}.",
        "too_many": "{count} files: only the first {most} are classified.",
        "where": "Where the model looks",
        "where_note": "Red is the strongest evidence for the answer, blue is none.",
        "example": "example: {word}",
        "photo": "the photo",
        "map": "Grad-CAM map over the photo",
        "no_picture": "There is no such picture.",
        "number": "{label}, number {seed}",
        "classifier": "The classifier's answer:",
    },
    "ko": {
        "kept": "사진은 분류한 뒤 지웁니다. 보내 주신 것은 아무것도 남기지 않습니다.",
        "upload": "업로드",
        "photos": "사진, 최대 {most}장",
        "heat": "모델이 어디를 보는지 바로 보기 (Grad-CAM)",
        "examples": "또는 이 중 하나로 해 보세요",
        "webcam": "웹캠",
        "still": "사진 찍기",
        "live": "실시간",
        "make": "그림 만들기",
        "no_gan": "아직 그림을 만들 수 없습니다. 이 run의 생성기가 학습되지 않았습니다. 이 페이지의 운영자가 "
        "`{command}`로 학습할 수 있습니다.",
        "label": "라벨",
        "seed": "시드: 같은 시드는 같은 그림을 만듭니다",
        "make_it": "만들기",
        "save_csv": "answers.csv 저장",
        "save_picture": "그림 저장",
        "sure": "{label}, 확신도 {share}.",
        "labels": "{labels}.",
        "no_label": "해당하는 라벨이 없습니다. 가장 가능성이 높은 라벨: {labels}.",
        "faces": "얼굴이 {count}개 있습니다. 크기와 위치로 보아 주된 얼굴인 상자 안의 얼굴에 대한 답입니다.",
        "no_face": "이 사진에서 얼굴을 찾지 못해 답할 수 없습니다.",
        "not_sent": "업로드되지 않은 파일입니다.",
        "bad_file": "이 파일은 분류할 수 없습니다: {why}.",
        "bad_frame": "이 화면은 분류할 수 없습니다: {why}.",
        "too_many": "파일 {count}개 중 처음 {most}개만 분류합니다.",
        "where": "모델이 보는 곳",
        "where_note": "빨강은 답의 가장 강한 근거이고, 파랑은 근거가 없는 곳입니다.",
        "example": "예: {word}",
        "photo": "사진",
        "map": "사진 위의 Grad-CAM 지도",
        "no_picture": "그런 그림은 없습니다.",
        "number": "{label}, {seed}번",
        "classifier": "분류기의 답:",
    },
}

# what people call the classes of the mask task, whose heads have these very classes; other classes keep their names
CLASSES = {
    ("wear", "incorrect", "normal"): {
        "en": ("mask worn", "mask worn wrongly", "no mask"),
        "ko": ("마스크 씀", "마스크를 잘못 씀", "마스크 안 씀"),
    },
    ("male", "female"): {"en": ("man", "woman"), "ko": ("남성", "여성")},
    ("<30", "30-59", ">=60"): {
        "en": ("under 30", "30 to 59", "60 or older"),
        "ko": ("30세 미만", "30~59세", "60세 이상"),
    },
}
HEADS = {"ko": {"mask": "마스크", "gender": "성별", "age": "나이"}, "en": {}}
STEMS = {"mask1": "wear", "incorrect_mask": "incorrect", "normal": "normal"}  # names of drawn photos


def language(header: str | None) -> str:
    """The language of LANGUAGES that an Accept-Language header prefers; English where it names none."""
    found = []
    for part in (header or "").split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            found.append((float(weight or 1), name.split("-")[0].lower()))
        except ValueError:
            continue
    known = [name for _, name in sorted(found, key=lambda one: -one[0]) if name in LANGUAGES]
    return known[0] if known else "en"


def say(tongue: str, key: str, **values) -> str:
    """A sentence of WORDS in a language."""
    return WORDS[tongue][key].format(**values)


def of_classes(tongue: str, classes) -> dict[str, str]:
    """{class: what people call it} of a head's classes; their own names where we know no better."""
    known = CLASSES.get(tuple(classes))
    return dict(zip(classes, known[tongue] if known else classes, strict=True))


def of_head(tongue: str, name: str) -> str:
    """What people call a head."""
    return HEADS[tongue].get(name, name)


def of_labels(tongue: str, labels: dict[str, float], shares: dict[str, float]) -> str:
    """The sentence of several labels a photo. labels: {label: probability} of those answered; shares: of all."""
    likeliest = max(shares, key=shares.get)
    shown = sorted(labels.items(), key=lambda one: -one[1]) or [(likeliest, shares[likeliest])]
    text = ", ".join(f"{name} ({share:.0%})" for name, share in shown)
    return say(tongue, "labels" if labels else "no_label", labels=text)


def of_answer(tongue: str, found: dict) -> str:
    """The sentence of an answer of serving.Predictor, or of a file that has none ({"said"})."""
    if found.get("no_face"):
        return say(tongue, "no_face")
    if "parts" not in found:
        return found["said"]
    if "labels" in found:
        sentence = of_labels(tongue, found["labels"], *found["heads"].values())
    elif found["probability"] is None:
        sentence = re.sub(r"\.$", "", found["said"].split(". ")[0]) + "."
    else:
        words = [of_classes(tongue, found["heads"][name])[label] for name, label in found["parts"].items()]
        sentence = say(tongue, "sure", label=", ".join(words), share=f"{found['probability']:.0%}")
    return sentence + (" " + say(tongue, "faces", count=found["faces"]) if found["faces"] > 1 else "")
