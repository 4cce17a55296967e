"`explore`: a page of the shipped models or of others, with the names of their classes."


def test_explore_writes_a_page(run, small_demo, out):
    code, text, err = run('explore', '--n', '5', '--device', 'cpu', '--out', out/'page.html')
    assert code == 0 and err == '' and 'image 0 of 5, of class' in text and f"Open {out/'page.html'}" in text
    assert all(f'\n{name} ' in text for name in ('dense', 'a-vit', 'adavit', 'as-vit'))
    assert [f.name for f in out.iterdir()] == ['page.html'] and '"mount' not in (out/'page.html').read_text()[:100]


def test_explore_shows_photos_with_the_names_of_their_folders(run, kept, copied, photos, out, adaptive):
    words = ['explore', '--model', adaptive, '--images', photos, '--device', 'cpu', '--out', out/'page.html']
    code, text, err = run(*words, '--n', '3')
    assert code == 0 and 'no accuracy' in err and 'of class' not in text  # two folders, ten classes
    classes = photos.parent/'classes.txt'
    classes.write_text('\n'.join([*(f'other{k}' for k in range(8)), 'class0', 'class1']))
    code, text, err = run(*words, '--class-map', classes)
    assert code == 0 and err == '' and 'of class class' in text
    assert 'data:image/png' in (out/'page.html').read_text()


def test_explore_refuses_what_it_cannot_write_or_show(run, refused, adaptive, dense, tmp_path):
    refused([str(tmp_path), 'is a folder', '--out'], 'explore', '--model', adaptive, '--out', tmp_path, writes=False)
    (tmp_path/'taken').write_text('mine')
    words = ['explore', '--model', 'x', '--out', tmp_path/'taken'/'page.html']
    refused([f"{tmp_path/'taken'} is a file", '--out'], *words, writes=False)
    six = [f'{dense}{"/" * k}' for k in range(6)]
    refused(['6 models', '1 to 5'], 'explore', '--model', *six, '--out', tmp_path/'page.html', writes=False)
    assert not (tmp_path/'page.html').exists() and (tmp_path/'taken').read_text() == 'mine'
