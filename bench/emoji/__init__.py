"""The recipe of the data set "emoji": drawings of emoji by seven teams, with the names that people gave them."""
