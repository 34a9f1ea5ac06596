"""Result files, the tables and analyses made from them, and the HTML report. No run needs it."""
