"""One page for each odd shape of the real site: its body HTML, and the text that must come out.

Every key but `about` and `text` replaces the usual key of an article. Where `text` is None, the
article is skipped for the reason in SKIPPED. The articles are fiction.
"""

_LONG = (
    "The prototype crossed the pass at dawn and the crew wrote down every figure "
    "it could read from the screens. "
)
_PROSE = (_LONG * 40).strip()
ODD = {
    "T0800001DE": dict(
        about="German article",
        title="Die Messe für Boote ist eröffnet.",
        teaser="Drei Tage für Boote und Segel.",
        date="2025-05-12",
        html="<p>\n  <strong>Lindau. </strong>Die Messe ist eröffnet, und der See ist\n  voll.</p>"
        "<p>Sie dauert z.&nbsp;B. für Schulen bis zum 14. Mai.</p><p>Pressekontakt:</p>"
        "<p>Ada Vogt<br>Telefon: +49-89-382-00000</p>",
        text="Lindau. Die Messe ist eröffnet, und der See ist voll.\n\n"
        "Sie dauert z. B. für Schulen bis zum 14. Mai.",
    ),
    "T0900203DE": dict(
        about="German list",
        title="„Über den See“: Das Boot für zwei Personen",
        teaser="",
        date="2025-03-03",
        html="<p>Das Boot wird mit 42&nbsp;kW angetrieben und trägt zwei Personen.</p>"
        "<ul><li>größer als das alte</li><li>für den See</li></ul>",
        text="Das Boot wird mit 42 kW angetrieben und trägt zwei Personen.\n\n"
        "- größer als das alte\n- für den See",
    ),
    "T0900204DE": dict(
        about="English text under a German id",
        html="<p>The fair is open, and this is the text for all of the guests.</p>",
        text=None,
    ),
    "T0800002EN_GB": dict(
        about="British edition",
        html="<p>\n  <strong>Farnborough. </strong>The tyre is\n  home.</p>\n<p>&nbsp;</p>",
        text="Farnborough. The tyre is home.",
    ),
    "T0800003EN": dict(
        about="slug with slashes",
        slug="specifications-of-the-fictional-roadster-valid-from-03/2025",
        category="Fact & Figures",
        html="<p>Please find attached the specifications of the Roadster, valid from 03/2025.</p>",
        text="Please find attached the specifications of the Roadster, valid from 03/2025.",
    ),
    "T0800004EN": dict(
        about="slug with colon, dash, accent and U+202F",
        slug="récord:-one-lap–two-drivers’-tale\u202f",
        title="Récord: one lap – two drivers’ tale.\u202f ",
        html="<p>Two drivers\u202fshared\u200bone lap of the 20,8&nbsp;km track, "
        "and it was theirs.</p>",
        text="Two drivers shared one lap of the 20,8 km track, and it was theirs.",
    ),
    "T0800005EN": dict(
        about="body without p",
        html="\n  Additional material for\n  the presentation.<br/>\n  It is in the attachment.\n",
        text="Additional material for the presentation.\nIt is in the attachment.",
    ),
    "T0800006EN": dict(
        about="whole article in one p",
        html=f"<p>{_LONG * 40}<br><br>For details see www.pressclub.example or call. {_LONG * 40}"
        "<br>In case of queries, please contact:<br>Corporate Communications"
        "<br>Ada Vogt, Spokesperson<br>Phone: +49-89-382-00000</p>",
        text=f"{_PROSE}\n\nFor details see www.pressclub.example or call. {_PROSE}",
    ),
    "T0800007EN": dict(
        about="one p in one line that speaks of a contact",
        html="<p>In case of queries, please contact: Ada Vogt, Phone: +49-89-382-00000. "
        f"{_LONG * 20}</p>",
        text="In case of queries, please contact: Ada Vogt, Phone: +49-89-382-00000. "
        f"{(_LONG * 20).strip()}",
    ),
    "T0800008EN": dict(
        about="lists",
        html="<p>The results are outstanding:</p><ul>\n<li>first in <b>Spain</b></li>"
        "<li><p>second in\n  Italy</p></li></ul><p><strong>Next steps</strong></p>"
        "<ol><li>The boats<ul><li>the sails</li></ul></li></ol>",
        text="The results are outstanding:\n\n- first in Spain\n- second in Italy\n\n"
        "Next steps\n\n- The boats\n- the sails",
    ),
    "T0800009EN": dict(
        about="tables",
        html="<p>The figures of the year.</p>"
        "<table><tr><th></th><th><p>2031</p></th><th><p>2030</p></th></tr>"
        "<tr><td><p>Revenues</p><p>&euro; million</p></td><td><p>12,4</p></td>"
        "<td><p>11,9</p></td></tr><tr><td>&nbsp;</td></tr></table>"
        "<table><tr><td><p>A frame is no table.</p><p>Its text is kept.</p></td></tr></table>"
        "<p>The end.</p>",
        text="The figures of the year.\n\n\t2031\t2030\nRevenues € million\t12,4\t11,9\n\n"
        "A frame is no table.\n\nIts text is kept.\n\nThe end.",
    ),
    "T0800010EN": dict(
        about="footnotes and a CO2 box beside and inside the body",
        html="<p>The car of this story drives to the sea and back: 571<sup>1</sup>&nbsp;km and no "
        "CO<sub>2</sub>.<a><sup>2</sup></a> The 1<sup>st</sup> hall has 25,000 m<sup>2</sup>.</p>"
        "<div class='text co2_summary'>Energieverbrauch kombiniert: 14,7 kWh/100 km</div>",
        co2="Roadster: Energieverbrauch kombiniert: 14,7 kWh/100 km; CO2-Emissionen: 0 g/km",
        text="The car of this story drives to the sea and back: 571 km and no CO2. "
        "The 1st hall has 25,000 m².",
    ),
    "T0800011EN": dict(
        about="stub",
        html="<p>Attached please find the CV of Ada Vogt.</p>",
        text="Attached please find the CV of Ada Vogt.",
    ),
    "T0800012EN": dict(
        about="no teaser",
        teaser="",
        html="<p>No teaser is above this.</p>",
        text="No teaser is above this.",
    ),
    "T0800013EN": dict(about="empty body", html="\n<p>&nbsp;</p>\n<p> </p>\n", text=None),
    "T0800014EN": dict(
        about="German text under an English id",
        title="Die Messe ist eröffnet.",
        teaser="Das ist der Auftakt mit drei Tagen.",
        html="<p>Die Messe ist eröffnet, und sie dauert von Montag bis Mittwoch. "
        "Das Programm ist zu finden.</p>",
        text=None,
    ),
    "T0800015EN": dict(
        about="contacts, boilerplate and social media",
        html="<p>The plant builds boats for the lake.</p><p>&nbsp;</p>"
        "<p>In case of queries, please contact:</p><p>Corporate Communications</p>"
        "<p>Ada Vogt, Spokesperson Boats<br>Phone: +49-89-382-00000<br>"
        "E-mail: ada@pressclub.example</p><p>Media website: www.pressclub.example</p>"
        f"<p><strong>The boat group</strong></p><p>{_LONG * 3}</p><p>www.pressclub.example</p>"
        "<p>LinkedIn: http://linkedin.example/boats</p><p>X: https://x.example/boats</p>",
        text=f"The plant builds boats for the lake.\n\nThe boat group\n\n{(_LONG * 3).strip()}",
    ),
    "T0800016EN": dict(
        about="markup in words",
        title="Prices <b>down</b> & $x_1$ up <script>alert(1)</script>",
        html="<p>&lt;script&gt;alert(1)&lt;/script&gt; is *text* here, &amp;euro; too.</p>"
        "<script>document.title = 'ran'</script>",
        text="<script>alert(1)</script> is *text* here, &euro; too.",
    ),
    "T0800017EN": dict(
        about="blocks left open",
        html="<p>The first is open.<p>The second is open as well.<div>And this is a div",
        text="The first is open.\n\nThe second is open as well.\n\nAnd this is a div",
    ),
}
SKIPPED = {article_id: "in DE, says its id" for article_id in ODD if article_id.endswith("DE")}
SKIPPED |= {"T0800013EN": "no body", "T0800014EN": "text is not EN"}
