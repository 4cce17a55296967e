"What the demo says of easy and hard images."
import adaptive_tokens as at
from adaptive_tokens.images.digits import ClutteredDigits, digits_vit
from adaptive_tokens.look.by_level import by_level


def test_by_level_counts_blocks_on_the_digit_and_beside_it():
    class Everything(at.Method):
        name = 'everything'
        def forward(self, blocks, t, record):
            from adaptive_tokens.backbones.backbone import run_block
            for block in blocks: record(t); t = run_block(block, t)
            return t
    vit, digits = digits_vit(img_size=32, embed_dim=32, depth=2).eval(), ClutteredDigits('test', size=12, image_size=32)
    cells, tokens, level = by_level(at.adapt(vit, Everything(vit)), digits, 5)
    head, *rows = cells
    assert [row[0] for row in rows] == ['easy', 'medium', 'hard'] and all(row[1] == 4 for row in rows)
    for name in ('blocks per patch', 'on the digit', 'beside it'):
        assert all(row[head.index(name)] == '2.0' for row in rows)
    assert tokens.tolist() == [17.] * 12 and level.tolist() == [0, 1, 2] * 4
