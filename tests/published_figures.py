"""What papers print: each figure, where, and the table, row and column of a report it stands in."""

import re
from collections import Counter

from s2f.report import MISSING, Table, shown

FACE_PLUS = "published: Oh et al., Face++"
# By the place where they are printed, and the table of a report: its rows, and their figures by
# column. A table is given by how its title begins, a row by its first cells, a column by its head
# without "%", the second of one head as `head 2`. What has no row measures what we do not: gains
# in cosine distance over baselines without a name (SCLDM), in the ears' distance of 3D heads
# (Cross-Modal Perceptionist), verification of voices made from faces (Vclip).
PUBLISHED = {
    ("Oh et al. 2019, Table 2", "Oh: embeddings"): """
        published: 3 s, AVSpeech | angle, degrees=48.43; L2=0.19; L1=9.81; N=5000
        published: 3 s, AVSpeech | deviation=6.01; deviation 2=0.03; deviation 3=1.74
        published: 6 s, AVSpeech | angle, degrees=45.75; L2=0.18; L1=9.42; N=5000
        published: 6 s, AVSpeech | deviation=5.09; deviation 2=0.02; deviation 3=1.54
        """,
    ("Oh et al. 2019, Table 3, by whose chance N is 100", "Oh: recall"): """
        published: 3 s, AVSpeech, l2 | R@1=5.86; R@2=10.02; R@5=18.98; R@10=28.92; N=100
        published: 3 s, AVSpeech, l1 | R@1=6.22; R@2=9.92; R@5=18.94; R@10=28.70; N=100
        published: 3 s, AVSpeech, cosine | R@1=8.54; R@2=13.64; R@5=24.80; R@10=38.54; N=100
        published: 6 s, AVSpeech, l2 | R@1=8.28; R@2=13.66; R@5=24.66; R@10=35.84; N=100
        published: 6 s, AVSpeech, l1 | R@1=8.34; R@2=13.70; R@5=24.66; R@10=36.22; N=100
        published: 6 s, AVSpeech, cosine | R@1=10.92; R@2=17.00; R@5=30.60; R@10=45.82; N=100
        published: chance | R@1=1.00; R@2=2.00; R@5=5.00; R@10=10.00; N=100
        """,
    ("saiteja-talluri/Speech2Face, report", "Oh: recall"): """
        published: saiteja-talluri, test videos, speakers not kept apart | R@1=51; R@5=61; N=600
        published: saiteja-talluri, test videos, speakers not kept apart | R@10=66
        published: saiteja-talluri, videos of training | R@1=45; R@5=52; R@10=55; N=4800
        """,
    ("Oh et al. 2019, Figure 5, all p < 0.001; at last their file of them", "Craniofacial"): """
        upper lip height | Oh et al.=.16; Oh et al., p=< 0.001
        lateral upper lip heights | Oh et al.=.26; Oh et al., p=< 0.001
        jaw width | Oh et al.=.11; Oh et al., p=< 0.001
        nose height | Oh et al.=.14; Oh et al., p=< 0.001
        nose width | Oh et al.=.35; Oh et al., p=< 0.001
        labio-oral region | Oh et al.=.17; Oh et al., p=< 0.001
        mandibular index | Oh et al.=.20; Oh et al., p=< 0.001
        intercanthal index | Oh et al.=.21; Oh et al., p=< 0.001
        nasal index | Oh et al.=.38; Oh et al., p=< 0.001
        vermilion height index | Oh et al.=.29; Oh et al., p=< 0.001
        mouth-face width index | Oh et al.=.20; Oh et al., p=< 0.001
        nose area | Oh et al.=.28; Oh et al., p=< 0.001
        mean of the twelve | Oh et al.=.229
        chance: mean |r| of the twelve, people shuffled | Oh et al.=.02
        philtrum width | Oh et al.=.038; Oh et al., p=.239
        """,
    ("Oh et al. 2019, text", "Agreement with"): f"sex, {FACE_PLUS} | from voice=94",
    ("Oh et al. 2019, Figure 4 and supplement", "Agreement by"): f"""
        sex, F, {FACE_PLUS} | from photo=89; from voice=94; voice as photo=96
        sex, M, {FACE_PLUS} | from photo=98; from voice=94; voice as photo=91
        age, 10-19, {FACE_PLUS} | from voice=0
        age, 20-29, {FACE_PLUS} | from photo=58; from voice=26
        age, 30-39, {FACE_PLUS} | from photo=42; from voice=32
        age, 40-49, {FACE_PLUS} | from photo=46; from voice=33
        age, 50-59, {FACE_PLUS} | from photo=52; from voice=30
        age, 60-69, {FACE_PLUS} | from photo=40; from voice=16
        age, 70-79, {FACE_PLUS} | from photo=61; from voice=35
        ethnicity, Asian, {FACE_PLUS} | from photo=71; from voice=50
        ethnicity, black, {FACE_PLUS} | from photo=41; from voice=11
        ethnicity, India, {FACE_PLUS} | from photo=55; from voice=13
        ethnicity, white, {FACE_PLUS} | from photo=76; from voice=61
        """,
    ("Vox2Face, Table 2, and its ablations, of the 378 of HQ-VoxCeleb", "SF2F: generated"): """
        published: Speech-to-face, VE (Pietkun et al.) | cosine=.213; L2=1.20; N=378
        published: Speech-to-face, VE (Pietkun et al.) | R@5=4.6; R@10=8.7; VGGFace score=13.43
        published: Speech-to-face, AST_165 (Pietkun et al.) | cosine=.216; L2=1.17; N=378
        published: Speech-to-face, AST_165 (Pietkun et al.) | R@5=5.7; R@10=10.5
        published: Speech-to-face, AST_165 (Pietkun et al.) | VGGFace score=13.78
        published: Voice2Face (Wen et al.) | cosine=.259; L2=1.26; R@5=8.7; R@10=12.3; N=378
        published: Voice2Face (Wen et al.) | VGGFace score=15.03
        published: SF2F | cosine=.295; L2=1.14; R@5=14.6; R@10=29.8; VGGFace score=18.82; N=378
        published: Vox2Face | cosine=.322; L2=1.09; R@5=17.3; R@10=32.1; N=378
        published: Vox2Face | VGGFace score=23.21
        published: Vox2Face, plain cosine regression | cosine=.317; R@10=22.5; N=378
        published: Vox2Face, without ArcFace alignment | cosine=.242; R@10=25.6; N=378
        published: Vox2Face, without diffusion | cosine=.296; R@10=30.4; N=378
        published: Vox2Face, without diffusion | VGGFace score=21.87
        """,
    ("SF2F (Bai et al. 2022), page of its repository", "SF2F: generated"): """
        published: voice2face, 64 px, by SF2F | VGGFace score=15.47; deviation=.67; N=378
        published: SF2F without fuser, 64 px | VGGFace score=18.59; deviation=.87; N=378
        published: SF2F, 64 px | VGGFace score=19.49; deviation=.59; N=378
        published: SF2F without fuser, 128 px | VGGFace score=19.31; deviation=.65; N=378
        published: SF2F, 128 px | VGGFace score=20.10; deviation=.47; N=378
        """,
    ("Wen et al. 2019, matching", "Wen: one"): """
        anyone; published: Wen et al., people of training, 2 | right=96.83; chance=50
        anyone; published: Wen et al., test, 2 | right=76.07; chance=50
        anyone; published: SVHF, test, 2 | right=81.00; chance=50
        anyone; published: DIMNet-I, test, 2 | right=83.45; chance=50
        anyone; published: DIMNet-G, test, 2 | right=72.90; chance=50
        of the same sex; published: Wen et al., people of training, 2 | right=93.98; chance=50
        of the same sex; published: Wen et al., test, 2 | right=59.69; chance=50
        of the same sex; published: SVHF, test, 2 | right=65.20; chance=50
        of the same sex; published: DIMNet-I, test, 2 | right=70.91; chance=50
        of the same sex; published: DIMNet-G, test, 2 | right=50.32; chance=50
        """,
    ("Wen et al. 2019, identification", "Wen: closed"): """
        published: Wen et al., people of training | top-1=61.7; top-5=82.3; N=924
        """,
    ("Wen et al. 2019, text", "Agreement with"): "sex, published: Wen et al. | from voice=96.45",
    ("wav2pix (Duarte et al. 2019), of ten people", "Wen: closed"): """
        published: wav2pix, speech of training | top-1=76.81; N=10
        published: wav2pix, other speech of these people | top-1=50.08; N=10
        """,
    ("wav2pix, text", "Faces as"): "share with all 68 points found | published=0.9025",
    ("the above, in percent", "Headline"): """
        Oh: 6 s, angle, degrees | published=45.75 (Oh)
        Oh: 6 s, R@10 among 8, % | published=45.82 (Oh, chance 10)
        SF2F: R@10 among 8, % | published=29.8 (SF2F, chance 2.65)
        Wen: 1 of 2, % | published=76.07 (Wen)
        Wen: 1 of 2, same sex, % | published=59.69 (Wen)
        craniofacial measures, mean r (chance: 95 % are below) | published=0.229 (Oh)
        sex agrees, % | published=94 (Oh)
        all 68 points found, % | published=90.25 (wav2pix)
        """,
}
NAMES = {"heard", "query", "metric", "measure", "faces", "other faces", "label", "true", "judge of"}
THEIRS = {"published", "Oh et al.", "Oh et al., p"}  # columns of rows that are ours


def printed(table: Table) -> list[tuple[str, dict[str, str]]]:
    """Rows of a table, as a page shows them: all cells in one line, and cells by column."""
    seen = Counter[str]()
    names = []
    for head in shown(table)[0]:
        plain = re.sub(r" %$| %? ?\(95 %\)", "", head)
        seen[plain] += 1
        names.append(f"{plain} {seen[plain]}" if seen[plain] > 1 else plain)
    return [(", ".join(row), dict(zip(names, row, strict=True))) for row in shown(table)[1]]


def number(text: str) -> float | str:
    """What a figure is worth, as 0.190 is .19."""
    plain = text.replace(",", "")
    return float(plain) if re.fullmatch(r"[\d.]+", plain) else text


def check_published(tables: list[Table]) -> None:
    """Each figure above stands in its row and column, and none there that is not above."""
    titles = {title for _, title in PUBLISHED}
    for table in tables:
        wanted: dict[str, dict[str, float | str]] = {}
        for (_, title), lines in PUBLISHED.items():
            for line in lines.strip().splitlines() if table.title.startswith(title) else ():
                titles.discard(title)
                name, _, figures = line.strip().partition(" | ")
                said = (figure.partition("=") for figure in figures.split("; "))
                wanted.setdefault(name, {}).update({head: number(v) for head, _, v in said})
        found = {}
        for line, cells in printed(table):
            is_theirs = "published: " in line
            heads = [head for head in cells if head in THEIRS or (is_theirs and head not in NAMES)]
            told = {head: number(cells[head]) for head in heads if cells[head] != MISSING}
            if told:
                name = max(
                    (one for one in wanted if line.startswith(f"{one}, ")), key=len, default=line
                )
                found[name] = told
        assert found == wanted, table.title
    assert not titles
