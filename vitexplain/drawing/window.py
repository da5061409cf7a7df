"""Show an image in a window."""

from PIL import Image, ImageTk


def show(path: str) -> str:
    """Open a window with the image at `path` and wait until it is closed.

    Returns:
        "", or the reason why no window can be opened.
    """
    try:
        import tkinter
    except ImportError:
        return "this Python has no tkinter"
    try:
        root = tkinter.Tk()
    except tkinter.TclError as error:
        return str(error)
    root.title(path)
    fitted = Image.open(path)
    fitted.thumbnail((root.winfo_screenwidth() * 9 // 10, root.winfo_screenheight() * 8 // 10))
    photo = ImageTk.PhotoImage(fitted)
    tkinter.Label(root, image=photo).pack()
    root.bind("<Key>", lambda _event: root.destroy())
    root.mainloop()
    return ""
